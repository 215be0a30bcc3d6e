#!/usr/bin/env bash
# Runs the tests of the modules in $MODULES (`make test` and `make race` name them), one module after the other, and prints a table at
# the end. Nothing is taken from Go's test cache: tests drive executables that the cache knows nothing of.
#
# What could not run is never silent: a skipped test, and a test that logs "NOT RUN: why", are counted and named. If $COUNTS
# names a file, "module passed failed skipped" is appended to it for each module, and "- what could not run" for each of those.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

race=
if [ "${1:-}" = -race ]; then
  race=1
  export CGO_ENABLED=1
  tools/compiler.sh
fi

# Modules that need the kubelet's code take minutes to compile.
heavy() { grep -q '^[[:space:]]*\(require \)\?k8s.io/kubernetes ' "$1/go.mod"; }

# What is left out under the race detector, which sees into one process: tests whose subject are programs that they start. They run without it all the same. A reason, or nothing.
unwatched() {
  if heavy "$1"; then
    echo "the race detector would compile the whole kubelet"
    return
  fi
  case $1 in
    test/clients | test/command | test/daemonset | test/docs | test/node | test/packages | test/peers | test/steady | tools/release) echo "its tests start programs, into which the race detector does not see" ;;
  esac
}
# The one test that runs under it, of a module of which the same is true of all others. The soak builds its programs with the detector in them.
watched() { if [ "$1" = test/faults ]; then echo TestSoak; fi; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go tool -modfile=tools/go.mod gotestsum --version >/dev/null # so that building it counts as nobody's test time

# The same of the Vault server that some tests run. It says how long that takes. Without it those tests fail, and say why.
with_vault() { [ "$(cd "$1" && go list -test -deps $PKGS 2>/dev/null | grep -cx github.com/credential-broker/credential-broker/test/vaultserver)" -ne 0 ]; }
case " ${TESTFLAGS:-} " in
  *' -short '*) ;; # they are skipped instead
  *)
    for module in $MODULES; do
      if with_vault "$module"; then
        go run ./test/vaultserver/build || true
        break
      fi
    done
    ;;
esac

# Lines of the table: module, passed, failed, skipped, seconds.
table=()
missed=()
status=0
for module in $MODULES; do
  if [ -z "$(find "$module" -name '*_test.go' -not -path './test/*' -print -quit 2>/dev/null)" ]; then
    echo "── $module: a program without tests of its own"
    continue
  fi
  only=
  if [ -n "$race" ]; then
    reason=$(unwatched "$module")
    if [ -n "$reason" ]; then
      echo "── $module: left out: $reason"
      missed+=("$module: $reason")
      continue
    fi
    only=$(watched "$module")
    if [ -n "$only" ]; then missed+=("$module, all but $only: its tests start programs, into which the race detector does not see"); fi
  fi
  if heavy "$module"; then
    echo "── $module: compiles the kubelet's own code: about 9 minutes on two cores the first time, seconds afterwards"
  else
    echo "── $module"
  fi
  if [ "$module" = test/steady ]; then tools/valgrind.sh; fi
  if [ "$module" = . ]; then tools/python.sh; fi
  if [ "$module" = test/clients ]; then tools/skopeo.sh; fi

  events=$work/events.json
  : >"$events"
  start=$SECONDS
  code=0
  # Instrumented programs are several times slower; one package at a time leaves those that must end within a second the processor to do so.
  (cd "$module" && go tool -modfile="$root/tools/go.mod" gotestsum --format pkgname --format-hide-empty-pkg --jsonfile "$events" -- \
    -count=1 -timeout 30m ${race:+-race -p=1} ${only:+-run "^$only\$"} ${TESTFLAGS:-} $PKGS) || code=$?

  # One line for each event; quotes inside of a test's output are escaped, so these patterns match events only.
  passed=$(grep -c '"Action":"pass".*"Test":"' "$events" || true)
  failed=$(grep -c '"Action":"fail".*"Test":"' "$events" || true)
  skipped=$(grep -c '"Action":"skip".*"Test":"' "$events" || true)
  while IFS= read -r line; do
    missed+=("$line")
  done < <(sed -nE '/"Action":"skip".*"Test":"/ s/.*"Package":"([^"]*)","Test":"([^"]*)".*/\1 \2: skipped/p
    /"Output":"[^"]*NOT RUN: / s/.*"Package":"([^"]*)".*NOT RUN: ([^"]*)\\n.*/\1: \2/p' "$events")
  skipped=$((skipped + $(grep -c '"Output":"[^"]*NOT RUN: ' "$events" || true)))
  if [ "$code" -ne 0 ]; then
    status=1
    if [ "$failed" -eq 0 ]; then failed=1; fi # did not compile
  fi
  table+=("$module $passed $failed $skipped $((SECONDS - start))")
  if [ -n "${COUNTS:-}" ]; then echo "$module $passed $failed $skipped" >>"$COUNTS"; fi
done

echo
printf '%-20s %8s %8s %8s %9s\n' module passed failed skipped seconds
for line in ${table[@]+"${table[@]}"}; do
  # shellcheck disable=SC2086 # five words
  printf '%-20s %8s %8s %8s %9s\n' $line
done
for line in ${missed[@]+"${missed[@]}"}; do
  echo "NOT RUN: $line"
  if [ -n "${COUNTS:-}" ]; then echo "- $line" >>"$COUNTS"; fi
done
exit "$status"
