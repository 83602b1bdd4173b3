#!/bin/sh
# `test-summary.sh DIRECTORY SUITE...` prints one summary of the suites that scripts/test.sh ran, and fails unless each
# of them passed. The last line is `N passed, N failed, N skipped`.
#
# For each suite the directory has three files: SUITE.log, what cargo and the test program printed; SUITE.status, the
# exit status of cargo, 124 or 137 for one that was stopped because it took too long; SUITE.seconds, how long it took. A
# suite that never ran has none of them, and has failed.
#
# Both libtest and libtest-mimic print `test NAME ... ok`, `FAILED`, or `ignored` with a reason, and a line
# `test result:` at their end. The counts are those of the `test result:` lines. A program that crashed or was stopped
# prints no such line: then the lines of single tests are counted, and the suite itself counts as one more failure.
#
# Below one failed test of each suite stands why: the first and the last lines of what that test printed. A suite that
# ended in another way has its last lines there.
set -eu

directory=$1
shift

for suite in "$@"; do
    printf 'suite %s\n' "$suite"
    printf 'status %s\n' "$(cat "$directory/$suite.status" 2>/dev/null || echo none)"
    printf 'seconds %s\n' "$(cat "$directory/$suite.seconds" 2>/dev/null || echo 0)"
    # No line of a log can be taken for one of ours. The byte 33 (octal) begins a colour.
    if [ -r "$directory/$suite.log" ]; then
        sed -e "s/$(printf '\033')\\[[0-9;]*m//g" -e 's/^/log /' "$directory/$suite.log"
    fi
    # A program that was killed may not have ended its last line.
    printf '\nend\n'
done | awk -v SHOWN=3 -v WIDTH=200 -v SUITES=$# '
function clock(seconds) { return sprintf("%d:%02d", int(seconds / 60), seconds % 60) }

# What stands in a line after its first word.
function rest() { return substr($0, index($0, " ") + 1) }

# The number before a word, as in "12 passed;".
function number(line, word) { return match(line, "[0-9]+ " word) ? substr(line, RSTART, RLENGTH) + 0 : 0 }

$1 == "suite" {
    suite = $2
    status = "none"
    seconds = announced = ok = bad = left = results = passed = failed = ignored = filtered = uncompiled = 0
    printed = ended = 0
    section = first_section = ""
    next
}
$1 == "status" { status = $2; next }
$1 == "seconds" { seconds = $2; next }
$1 == "end" { conclude(); next }

# From here on, lines of the log.
{ line = rest() }
line != "" { ended++; last[ended % SHOWN] = line }
# "---- NAME stdout ----" of libtest, "---- NAME ----" of libtest-mimic: what a failed test printed follows.
# The sections are in the order of the names, and the results in the order in which the tests ended.
line ~ /^---- .* ----$/ {
    section = first_section == "" ? "first" : "later"
    if (section == "first") {
        first_section = line
        sub(/^---- /, "", first_section)
        sub(/( stdout)? ----$/, "", first_section)
    }
    next
}
line ~ /^(failures:|test result: )/ { if (section != "") section = "later" }
section == "first" && line != "" {
    printed++
    if (printed <= SHOWN) head[printed] = line
    tail[printed % SHOWN] = line
}
line ~ /^error(\[[A-Z0-9]+\])?: could not compile/ || line ~ /^error: .*couldn.t compile/ { uncompiled = 1 }
line ~ /^running [0-9]+ tests?$/ { announced += number(line, "test") }
line ~ /^test result: / {
    results++
    passed += number(line, "passed")
    failed += number(line, "failed")
    ignored += number(line, "ignored")
    filtered += number(line, "filtered out")
    next
}
line ~ /^test .* \.\.\. / {
    name = outcome = line
    sub(/^test /, "", name)
    sub(/ *\.\.\. .*$/, "", name)
    sub(/^.* \.\.\. /, "", outcome)
    if (outcome ~ /^ok/) ok++
    else if (outcome ~ /^FAILED/) { bad++; fails[++nfails] = suite ": " name }
    else if (outcome ~ /^ignored/) { left++; skip(outcome) }
}

function skip(outcome,    reason, key) {
    reason = outcome
    # libtest: "ignored, reason"; libtest-mimic: "ignored (reason)".
    sub(/^ignored(, | \()?/, "", reason)
    if (outcome ~ /^ignored \(/) sub(/\)$/, "", reason)
    if (reason == "") reason = "no reason given"
    key = suite ": " reason
    if (!(key in skips)) order[++nskips] = key
    skips[key]++
}

# Keeps a line, cut to a width, for below the failed test with this number.
function tell(failure, line) {
    if (length(line) > WIDTH) {
        line = substr(line, 1, WIDTH)
        # Some versions of awk count bytes, so the cut may be within a character. The last word goes.
        sub(/[^ ]*$/, "…", line)
    }
    why[failure] = why[failure] "\n      " line
}

# Why a test of this suite failed, or how the suite ended. `failure`: the first failure of the suite.
function tell_why(failure,    i) {
    for (i = failure; i <= nfails; i++) if (fails[i] == suite ": " first_section) { failure = i; break }
    if (!printed) {
        for (i = ended - SHOWN + 1; i <= ended; i++) if (i > 0) tell(failure, last[i % SHOWN])
        return
    }
    for (i = 1; i <= printed && i <= SHOWN; i++) tell(failure, head[i])
    if (printed > 2 * SHOWN) tell(failure, "…")
    for (i = printed - SHOWN + 1; i <= printed; i++) if (i > SHOWN) tell(failure, tail[i % SHOWN])
}

function conclude(    note, whole, first) {
    whole = (status == 0 && results > 0)
    first = before + 1
    if (!results || status != 0 && !failed) {
        # Counted by single tests what no result counts.
        if (!results) { passed = ok; failed = bad; ignored = left }
        failed++
        if (status == "none") note = "did not run"
        else if (uncompiled) note = "did not compile"
        else if (status == 124 || status == 137) note = "took too long and was stopped"
        else if (!announced && !results) note = "did not start (status " status ")"
        else note = "crashed (status " status ")"
        if (announced > ok + bad + left)
            note = note "; " (announced - ok - bad - left) " of its " announced " tests came to no end"
        fails[++nfails] = suite ": " note
    } else if (failed) note = "FAILED"
    if (filtered) note = note (note == "" ? "" : "; ") filtered " left out by a filter"
    rows[++nrows] = sprintf("%-10s %7d %7d %8d %8s  %s", suite, passed, failed, ignored, clock(seconds), note)
    all_passed += passed
    all_failed += failed
    all_ignored += ignored
    if (!whole) red = 1
    if (nfails >= first) tell_why(first)
    before = nfails
}

END {
    print ""
    printf "%-10s %7s %7s %8s %8s\n", "suite", "passed", "failed", "skipped", "time"
    for (i = 1; i <= nrows; i++) { sub(/ +$/, "", rows[i]); print rows[i] }
    if (nskips) print "\nskipped:"
    for (i = 1; i <= nskips; i++) printf "  %d of %s\n", skips[order[i]], order[i]
    if (nfails) print "\nfailed:"
    for (i = 1; i <= nfails; i++) printf "  %s%s\n", fails[i], why[i]
    printf "\n%d passed, %d failed, %d skipped\n", all_passed, all_failed, all_ignored
    exit (red || all_failed || !nrows || nrows != SUITES) ? 1 : 0
}'
