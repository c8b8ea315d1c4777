#!/bin/bash
#
# From a fresh Debian to a running pipeline; see --help.

set -euo pipefail

program=run.sh
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
CC=${CC:-gcc}
export CC
# shellcheck source=tools/lib.sh
. "$root/tools/lib.sh"

usage() {
    cat <<'END'
usage: ./run.sh                 build sluice and run the prime pipeline on real input
       ./run.sh --prefix DIR    build a release and install it under DIR
       ./run.sh --help          this text

Without options: installs missing Debian packages (with sudo unless root),
builds in build/, runs conf/prime.conf in the foreground, and says how many
numbers were tested and how many of them are prime. The second time there is
nothing to install or build.

Environment: CC (default gcc), SLUICE_LOG_LEVEL=debug for a closer look,
SLUICE_LOG_COLOR=always|never, NO_COLOR.
END
}

install_release() {
    local prefix folder

    prefix=$(realpath -m -- "$1")
    "$root/tools/install-deps" build
    folder=$(build_folder build-release)
    build "$folder" --prefix="$prefix" --libdir=lib --libexecdir=libexec --buildtype=release -Dtests=false ||
        fail "the build failed"
    quietly meson install -C "$folder" --no-rebuild --quiet || fail "cannot install under $prefix"
    say "installed under $prefix; try: seq 1 999 | $(printf '%q' "$prefix/bin/sluicectl") run prime"
}

# Runs the pipeline. The log, coloured on a terminal, goes to standard error as it comes, and to a file to be counted.
run_pipeline() {
    local log=$1

    # The numbers are logged at info.
    [ "${SLUICE_LOG_LEVEL:-}" = debug ] || export SLUICE_LOG_LEVEL=info
    if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
        export SLUICE_LOG_COLOR=${SLUICE_LOG_COLOR:-always}
    fi
    # tee stays through Ctrl-C: the pipeline still has things to say.
    { "$folder/daemon/sluicectl" run -c "$root/conf/prime.conf" 2>&1 >&3 3>&- </dev/null | tee -i -- "$log" >&2; } 3>&1
}

# Prints "TESTED PRIMES", from the lines of the stage "report".
count_results() {
    sed -E 's/\x1b\[[0-9;]*m//g' -- "$1" |
        awk '$2 == "info" && $3 == "report" && $NF ~ /^(prime|composite|neither|probable-prime)$/ {
                 tested++
                 primes += $NF == "prime"
             }
             END { print tested + 0, primes + 0 }'
}

print_more() {
    local bin=build/daemon conf=conf/prime.conf

    if [ "$PWD" != "$root" ] || [ "$folder" != "$root/build" ]; then
        bin=$(printf '%q' "$folder/daemon")
        conf=$(printf '%q' "$root/conf/prime.conf")
    fi
    cat <<END

Try more:
    seq 1 1000000 | $bin/sluicectl run prime | grep -c ' prime\$'
    seq 1 20 | $bin/sluicectl run --workers 4 prime
    $bin/sluiced --check -c $conf
    SLUICE_LOG_LEVEL=debug $bin/sluicectl run -c $conf
END
}

run() {
    local folder log status=0 tested primes

    "$root/tools/install-deps" build
    folder=$(build_folder build)
    [ -e "$folder/daemon/sluicectl" ] || say "building in $folder"
    build "$folder" -Dtests=false || fail "the build failed"

    log=$(mktemp)
    # shellcheck disable=SC2064 # the name is needed now, the variable is gone then
    trap "rm -f -- $(printf '%q' "$log")" EXIT
    run_pipeline "$log" || status=$?
    read -r tested primes < <(count_results "$log")

    if [ "$status" -ne 0 ]; then
        say "the pipeline ended with status $status after $tested numbers; the log above says why"
        exit "$status"
    fi
    [ "$tested" -gt 0 ] || fail "the pipeline ended well, but its log shows no tested number"
    printf '%d numbers tested, %d are prime.\n' "$tested" "$primes"
    print_more
}

# The number of words is part of what is matched.
case "$# ${1:-}" in
"0 ") run ;;
"2 --prefix") install_release "${2:?the folder is empty}" ;;
"1 --prefix="?*) install_release "${1#--prefix=}" ;;
"1 -h" | "1 --help") usage ;;
*)
    usage >&2
    exit 2
    ;;
esac
