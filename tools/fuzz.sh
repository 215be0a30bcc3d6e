#!/usr/bin/env bash
# Runs each fuzz target of the modules in $MODULES for $FUZZTIME and prints a table. What makes a target fail is left in the
# testdata/fuzz folder beside it, where the next `go test` runs it again.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rows=()
status=0
for module in $MODULES; do
  cd "$root/$module"
  # package folder and target; a module's own packages only
  while read -r folder target; do
    echo "── $module $folder $target for $FUZZTIME"
    result=ok
    go test -timeout 0 -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$folder" 2>&1 | tee "$work/log" || result=FAILED
    # Where the time ends while a worker is busy, go test may call that a failure of the target (golang/go#75804, mended in Go 1.27); a real one names its input or a panic.
    if [ "$result" != ok ] && grep -q '^ *context deadline exceeded$' "$work/log" && ! grep -qE 'Failing input|panic:|^ +--- FAIL' "$work/log"; then result=ok; fi
    if [ "$result" != ok ]; then status=1; fi
    # "fuzz: elapsed: 30s, execs: 325017 (11336/sec), new interesting: 11 (total: 202)"
    last=$(grep -E '^fuzz: elapsed: .*execs: ' "$work/log" | tail -1 || true)
    execs=$(sed -E 's/.*execs: ([0-9]+).*/\1/' <<<"$last")
    fresh=$(sed -nE 's/.*new interesting: ([0-9]+).*/\1/p' <<<"$last")
    rows+=("$target $module/${folder#./} ${execs:-0} ${fresh:-0} $result")
  done < <(go list -f '{{$d := .Dir}}{{range .TestGoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}' "$PKGS" |
    { xargs -r grep -HE '^func Fuzz[A-Z0-9_][A-Za-z0-9_]*\(' || true; } |
    sed -E "s|^$PWD/(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]*).*|./\1 \2|" | sort -u)
done

echo
printf '%-36s %-32s %12s %12s  %s\n' target package executions 'new inputs' result
for row in ${rows[@]+"${rows[@]}"}; do
  # shellcheck disable=SC2086 # five words
  printf '%-36s %-32s %12s %12s  %s\n' $row
done
exit "$status"
