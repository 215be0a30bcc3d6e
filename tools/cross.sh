#!/usr/bin/env bash
# Builds everything for each platform that a node or an operator may have, and vets it there, which type-checks the tests as well.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
for platform in ${PLATFORMS:-linux/amd64 linux/arm64 windows/amd64 darwin/arm64}; do
  export GOOS=${platform%/*} GOARCH=${platform#*/}
  start=$SECONDS
  result=ok
  go build ./... || result='DOES NOT BUILD'
  go vet ./... || result="${result#ok} VET FAILED"
  if [ "$result" != ok ]; then status=1; fi
  printf '%-16s %s (%d s)\n' "$platform" "$result" $((SECONDS - start))
done
exit "$status"
