#!/usr/bin/env bash
# Runs the product on nodes made of the real parts (test/node): all scenarios, or with "standalone" those that need no API server, or those whose tests' names match a pattern. Needs root. What cannot
# run here is named by "NOT RUN: why".
set -euo pipefail
cd "$(dirname "$0")/.."
programs=(kubelet crictl buildctl buildkitd)
case ${1:-} in
  '') programs+=(kube-apiserver) pattern=. ;;
  standalone) pattern=^TestStandalone ;;
  *) programs+=(kube-apiserver) pattern=$1 ;;
esac
if [ "$(uname -s)" != Linux ]; then
  echo "NOT RUN: a node needs Linux" >&2
  exit 1
elif [ "$(id -u)" -ne 0 ]; then
  echo "NOT RUN: a node needs root: run make node-test as root" >&2
  exit 1
fi
echo "a node of real parts: 15 to 25 minutes for all scenarios, and up to 25 more the first time, when ${programs[*]} are compiled"
tools/node-packages.sh
cd test/node
go run ./build "${programs[@]}"
NODE_TEST=1 go test -count=1 -timeout 60m -v -run "$pattern" . | grep -v '^=== '
