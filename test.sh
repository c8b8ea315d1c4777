#!/bin/bash
#
# From a fresh Debian to every test; see --help.

set -euo pipefail

# shellcheck disable=SC2034 # for lib.sh
program=test.sh
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tools/lib.sh
. "$root/tools/lib.sh"

usage() {
    cat <<'END'
usage: ./test.sh           everything a change has to pass (minutes)
       ./test.sh --fast    one build, its unit and integration tests
       ./test.sh --full    also the soak and long fuzz tests and, as root, a fresh Debian
       ./test.sh --help    this text

Installs missing Debian packages (with sudo unless root) and builds in
build-test-*/. The last line is "N passed, N failed" (and ", N skipped");
exit 1 if any failed.
END
}

passed=0 failed=0 skipped=0
declare -A built # the builds that worked

pass() {
    passed=$((passed + 1))
    printf 'ok       %s\n' "$1"
}

miss() {
    failed=$((failed + 1))
    printf 'FAILED   %s\n' "$1"
}

skip() {
    skipped=$((skipped + 1))
    printf 'skipped  %s: %s\n' "$1" "$2"
}

# check NAME COMMAND...: one test. What the command prints is shown only if it fails.
check() {
    local name=$1
    shift

    if quietly "$@"; then
        pass "$name"
    else
        miss "$name"
    fi
}

# build_as NAME COMPILER OPTION...: builds in build-test-NAME, warnings are errors. Counts as a test.
build_as() {
    local name=$1 folder
    local -x CC=$2
    shift 2

    folder=$(build_folder "build-test-$name")
    if build "$folder" -Dtests=true -Dwerror=true "$@"; then
        built[$name]=yes
        pass "$name: builds without warnings"
    else
        miss "$name: build"
        return 1
    fi
}

# run_suites NAME SUITE...: runs the suites in build-test-NAME.
run_suites() {
    local name=$1 folder suite counts p f s arguments=() patience=${patience:-1}
    shift

    folder=$(build_folder "build-test-$name")
    for suite in "$@"; do
        arguments+=(--suite "$suite")
    done

    rm -f -- "$folder/meson-logs/testlog.json"
    # Its exit status says less than its log.
    meson test -C "$folder" --no-rebuild --quiet --timeout-multiplier "$patience" "${arguments[@]}" \
        >"$folder/meson-logs/run.txt" 2>&1 </dev/null || true
    if [ ! -s "$folder/meson-logs/testlog.json" ]; then
        cat -- "$folder/meson-logs/run.txt" >&2
        miss "$name: no test of $* ran"
        return
    fi

    if ! counts=$("$root/tools/summarize-tests" "$folder/meson-logs/testlog.json"); then
        miss "$name: the log of $* cannot be read"
        return
    fi
    read -r p f s <<<"$counts"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-8s %s: %s: %d passed, %d failed, %d skipped\n' \
        "$([ "$f" -eq 0 ] && echo ok || echo FAILED)" "$name" "$*" "$p" "$f" "$s"
}

# run_sanitized NAME SUITE...: the same under sanitizers. A worker that a sanitizer stops is restarted by its
# supervisor, so that a test may well pass; therefore every process leaves its report in a file.
run_sanitized() {
    local name=$1 reports patience=4
    reports=$(mktemp -d)

    ASAN_OPTIONS=log_path=$reports/report:abort_on_error=1:detect_leaks=1:detect_stack_use_after_return=1 \
        TSAN_OPTIONS=log_path=$reports/report LSAN_OPTIONS=print_suppressions=0 \
        UBSAN_OPTIONS=log_path=$reports/report:halt_on_error=1:abort_on_error=1:print_stacktrace=1 \
        run_suites "$@"

    if [ -n "$(ls -A -- "$reports")" ]; then
        head -n 60 -- "$reports"/* >&2
        miss "$name: no sanitizer reports"
    else
        pass "$name: no sanitizer reports"
    fi
    rm -rf -- "$reports"
}

sources() {
    find "$root"/daemon "$root"/stages "$root"/include "$root"/tests "$root"/bench -name '*.[ch]' -print0 | sort -z
}

sources_are_formatted() {
    local file status=0

    while read -r -d '' file; do
        clang-format --dry-run -Werror -- "$file" >/dev/null 2>&1 || {
            printf 'clang-format -i %q would change it\n' "$file"
            status=1
        }
    done < <(sources)
    return "$status"
}

check_format() {
    if command -v clang-format >/dev/null; then
        check "clang-format" sources_are_formatted
    else
        skip "clang-format" "not installed"
    fi
}

check_scripts() {
    local file files=()

    if ! command -v shellcheck >/dev/null; then
        skip "shellcheck" "not installed"
        return
    fi
    for file in "$root"/run.sh "$root"/test.sh "$root"/.ci/run "$root"/tools/*; do
        if [[ $file == *.sh ]] || head -n 1 -- "$file" | grep -qE '^#!/bin/(ba)?sh'; then
            files+=("$file")
        fi
    done
    check "shellcheck" shellcheck --external-sources --source-path="$root" -- "${files[@]}"
}

prime_run_says_168() (
    cd / || exit 1
    output=$("$root/run.sh" 2>&1) || {
        printf '%s\n' "$output"
        exit 1
    }
    grep -qx '999 numbers tested, 168 are prime\.' <<<"$output" || {
        printf '%s\n' "$output"
        exit 1
    }
)

# The layout that packages and plugin authors rely on.
release_has_its_layout() (
    prefix=$(mktemp -d)
    trap 'rm -rf -- "$prefix"' EXIT
    status=0

    "$root/run.sh" --prefix "$prefix/with space" || exit 1
    cd "$prefix/with space" || exit 1
    for file in bin/sluiced bin/sluicectl libexec/sluice/sluice-worker lib/sluice/stages/prime.so \
        include/sluice/stage.h lib/pkgconfig/sluice.pc; do
        [ -f "$file" ] || {
            printf 'not installed: %s\n' "$file"
            status=1
        }
    done
    primes=$(seq 1 999 | bin/sluicectl run prime | grep -c ' prime$')
    [ "$primes" = 168 ] || {
        printf 'the installed sluicectl finds %s primes\n' "$primes"
        status=1
    }
    exit "$status"
)

# Left-overs: what a run must not leave behind, one per line, before and after.

# Processes of ours carry the mark in their environment; one that was given an environment of its own shows by name.
# Those of another test run at the same time carry its mark.
processes() {
    local directory pid name environment

    for directory in /proc/[0-9]*; do
        pid=${directory#/proc/}
        [ -O "$directory" ] || [ "$(id -u)" -eq 0 ] || continue
        { read -r name <"$directory/comm"; } 2>/dev/null || continue
        [[ $name == sluice* ]] || continue
        environment=$(tr '\0' '\n' 2>/dev/null <"$directory/environ") || continue
        if grep -qx "SLUICE_TEST_RUN=$SLUICE_TEST_RUN" <<<"$environment" ||
            ! grep -q '^SLUICE_TEST_RUN=' <<<"$environment"; then
            printf 'process %s %s\n' "$pid" "$name"
        fi
    done
}

# /dev/mqueue need not be mounted; root can have a view of its own.
queues() {
    if [ "$(id -u)" -eq 0 ]; then
        # shellcheck disable=SC2016 # for the inner shell
        unshare --mount sh -c 'mount -t mqueue mqueue "$1" && ls -A "$1"' sh "$scratch" 2>/dev/null && return
    fi
    grep -q ' /dev/mqueue mqueue ' /proc/mounts && ls -A /dev/mqueue
}

files() {
    find /dev/shm /tmp "${TMPDIR:-/tmp}" -maxdepth 1 -name 'sluice*' 2>/dev/null || true
}

left_overs() {
    processes
    files
    if [ "$sees_queues" = yes ]; then
        queues | sed -n 's/^sluice/queue sluice/p'
    fi
}

left_since() {
    LC_ALL=C comm -13 <(printf '%s\n' "$1") <(left_overs | LC_ALL=C sort -u)
}

# What has just been told to stop may take a moment.
check_left_overs() {
    local before=$1 left deadline=$((SECONDS + 10))

    if [ "$sees_queues" = no ]; then
        skip "no queue left behind" "/dev/mqueue is not mounted, and only root can look elsewhere"
    fi
    while left=$(left_since "$before") && [ -n "$left" ] && [ "$SECONDS" -lt "$deadline" ]; do
        sleep 0.2
    done
    if [ -n "$left" ]; then
        printf '%s\n' "$left" >&2
        miss "nothing left behind"
    else
        pass "nothing left behind"
    fi
}

check_fresh_debian() {
    if [ "$(id -u)" -ne 0 ]; then
        skip "a fresh Debian" "needs root"
    elif "$root/tools/fresh-debian"; then
        pass "a fresh Debian"
    else
        miss "a fresh Debian"
    fi
}

static_checks() {
    check "layers" "$root/tools/check-layers" "$root"
    check_format
    check_scripts
}

fast() {
    if build_as gcc gcc; then
        run_suites gcc unit integration
    fi
}

default() {
    static_checks
    fast
    if build_as clang clang; then
        run_suites clang unit
    fi
    # Plugins take the sanitizer's functions from the program that loads them.
    if build_as asan clang -Db_sanitize=address,undefined -Db_lundef=false; then
        run_sanitized asan unit integration
    fi
    check "run.sh: 168 primes" prime_run_says_168
    check "run.sh --prefix: layout" release_has_its_layout
}

full() {
    default
    if [ -n "${built[gcc]:-}" ]; then
        run_suites gcc full
    fi
    # sluicectl run is the only program with threads; the others are along to be talked to.
    if build_as tsan gcc -Db_sanitize=thread -Db_lundef=false; then
        run_sanitized tsan integration
    fi
    check_fresh_debian
}

case "$# ${1:-}" in
"0 ") what=default ;;
"1 --fast") what=fast ;;
"1 --full") what=full ;;
"1 -h" | "1 --help")
    usage
    exit 0
    ;;
*)
    usage >&2
    exit 2
    ;;
esac

"$root/tools/install-deps" test
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
SLUICE_TEST_RUN=$$-$(date +%s%N)
export SLUICE_TEST_RUN
sees_queues=yes
queues >/dev/null || sees_queues=no
before=$(left_overs | LC_ALL=C sort -u)

"$what"
check_left_overs "$before"

if [ "$skipped" -gt 0 ]; then
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
else
    printf '%d passed, %d failed\n' "$passed" "$failed"
fi
[ "$failed" -eq 0 ]
