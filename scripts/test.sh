#!/bin/sh
# Runs the test suites, each to its end whatever becomes of the others, and prints one summary of all as the last thing.
#
#   test.sh            every suite: the documentation, the library, the commands, and each directory of tests/
#   test.sh SUITE...   these alone: doc, lib, bins, or the name of a directory of tests/
#
# A suite is one test program; `doc` is the documentation's examples. `doc` mostly compiles, so it runs before the
# others. Two lanes run the others, the longest first. A suite mostly waits (for a lease to end), so two run at once.
# Each line of the output begins with its suite's name; the same output, without that, is kept in target/test-logs. The
# script fails if a test failed, or a suite crashed, did not compile, or took longer than TEST_LIMIT (45m: three times
# what all suites take together).
set -eu
cd "$(dirname "$0")/.."

: "${CARGO:=cargo}"
# What a suite may take, in the words of timeout(1). More is a suite that hangs: on a machine ten times slower, raise
# it.
: "${TEST_LIMIT:=45m}"
# Tests at a time in each program but chaos, which has a number of its own.
: "${TEST_THREADS:=6}"
logs=${CARGO_TARGET_DIR:-target}/test-logs

# The target of cargo that is this suite.
target_of() {
    case $1 in
        doc | lib | bins) echo "--$1" ;;
        *) echo "--test $1" ;;
    esac
}

play() {
    suite=$1
    began=$(date +%s)
    # shellcheck disable=SC2046 # Two words.
    set -- $(target_of "$suite")
    if [ "$suite" != doc ]; then
        set -- "$@" -- --test-threads="$TEST_THREADS"
    fi
    # timeout(1) makes a process group of its own, and ends all of it.
    {
        timeout -k 30 "$TEST_LIMIT" "$CARGO" test --all-features "$@" </dev/null 2>&1 &
        echo $! >"$logs/$suite.pid"
        status=0
        wait $! || status=$?
        rm -f "$logs/$suite.pid"
        echo "$status" >"$logs/$suite.status"
    } | tee "$logs/$suite.log" | sed -u "s/^/$(printf '%-7s' "$suite") | /"
    echo $(($(date +%s) - began)) >"$logs/$suite.seconds"
}

# Plays each of the suites that the other lane has not taken.
lane() {
    for suite in "$@"; do
        if mkdir "$logs/$suite.taken" 2>/dev/null; then
            play "$suite"
        fi
    done
}

all=''
for main in tests/*/main.rs; do
    suite=${main#tests/}
    all="$all ${suite%/main.rs}"
done
all="doc lib bins$all"
if [ $# -gt 0 ]; then
    for suite in "$@"; do
        case " $all " in
            *" $suite "*) ;;
            *) echo "test.sh: there is no suite $suite; there are: $all" >&2; exit 2 ;;
        esac
    done
    all=$*
fi

rm -rf "$logs"
mkdir -p "$logs"

# Everything is built first, so that no time limit of a test covers a build. What does not compile shows here, and again
# in its suite, which fails; the others run. The tests of the command start the examples.
set --
for suite in $all; do
    if [ "$suite" != doc ]; then
        # shellcheck disable=SC2046 # Two words.
        set -- "$@" $(target_of "$suite")
    fi
done
if [ $# -gt 0 ]; then
    "$CARGO" test --all-features --no-run --no-fail-fast "$@" || true
fi
case " $all " in
    *' cli '*) "$CARGO" build --all-features --examples || true ;;
esac

# The long ones go first, so that the lanes end together. But `it` goes last: it starts many pods with limits of time, as
# chaos does, and has the machine nearly to itself then.
ordered=''
for suite in chaos cancel cli $all; do
    case " $all " in
        *" $suite "*) ;;
        *) continue ;;
    esac
    case " it $ordered " in
        *" $suite "*) ;;
        *) ordered="$ordered $suite" ;;
    esac
done
case " $all " in
    *' it '*) ordered="$ordered it" ;;
esac

lanes=''
# The suites' processes are in groups of their own, so a Ctrl-C reaches this script alone. timeout(1) passes the signal
# on.
stop() {
    trap '' HUP INT TERM
    # shellcheck disable=SC2086 # Words.
    kill $lanes 2>/dev/null || true
    cat "$logs"/*.pid 2>/dev/null | xargs -r kill 2>/dev/null || true
    exit 130
}
trap stop HUP INT TERM
case " $all " in
    *' doc '*)
        lane doc &
        lanes=$!
        wait
        lanes=''
        ;;
esac
for _ in 1 2; do
    # shellcheck disable=SC2086 # Words.
    lane $ordered &
    lanes="$lanes $!"
done
wait

# In a file as well, for who has to end on its last line.
status=0
# shellcheck disable=SC2086
sh scripts/test-summary.sh "$logs" $all >"$logs/summary" || status=$?
cat "$logs/summary"
exit "$status"
