#!/bin/sh
# The only thing that removes a throwaway server's directory: `sh -c "$(cat watchdog.sh)" watchdog NAME DIRECTORY`.
#
# Waits for the end of its standard input, which comes when the process that holds the other end closes it or dies.
# Then it ends every process of the server NAME that is still there, and removes DIRECTORY with all that is in it.
# Every wait is bounded: 10 s for an initdb to end, 3 s for an immediate shutdown, 5 s after SIGKILL, 2 s for the
# removal.
# Needs a POSIX shell, grep with -z (GNU, busybox), and a sleep that takes fractions.

trap '' HUP INT QUIT TERM
name=$1
directory=$2
case $directory in
    */"$name") ;;
    *) exit 2 ;;
esac

while read -r _; do :; done

# The same test as `belongs` in process.rs: the title of a server's child, or the argument that its postmaster got.
processes() {
    grep -lzsE "^(postgres: $name: .*|cluster_name=$name)\$" /proc/[0-9]*/cmdline | cut -d / -f 3
}

signal_all() {
    for pid in $(processes); do
        kill -s "$1" "$pid" 2>/dev/null
    done
}

initdb() {
    grep -lzsFx -e "--pgdata=$directory/data" /proc/[0-9]*/cmdline
}

# Waits up to $2 times 50 ms until $1 lists nothing any more.
await_none() {
    tries=$2
    while [ -n "$($1)" ]; do
        [ "$tries" -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 0.05
    done
}

# Killed half-way, it would leave shared memory in /dev/shm. It takes about a second.
await_none initdb 200

if [ -n "$(processes)" ]; then
    # The quit is pending in a stopped process, and takes effect when it continues.
    signal_all QUIT
    signal_all CONT
    if ! await_none processes 60; then
        for _ in 1 2 3 4 5; do
            signal_all KILL
            await_none processes 20 && break
        done
    fi
fi

# A killed postmaster leaves a small System V memory segment, and its id in line 7 of this file.
segment=$(sed -n '7s/^ *[0-9][0-9]*  *\([0-9][0-9]*\) *$/\1/p' "$directory/data/postmaster.pid" 2>/dev/null)
if [ -n "$segment" ] && [ -z "$(processes)" ]; then
    ipcrm -m "$segment" 2>/dev/null
fi

tries=20
until rm -rf -- "$directory" 2>/dev/null || [ "$tries" -eq 0 ]; do
    tries=$((tries - 1))
    sleep 0.1
done
