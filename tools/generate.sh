#!/usr/bin/env bash
# Generates the protocol's Go code from proto/ with the generators that tools/go.mod pins. With --check nothing is written: it fails if
# what is there is not what would be generated.
set -euo pipefail
cd "$(dirname "$0")/.."
buf=(go tool -modfile=tools/go.mod buf)

if [ "${1:-}" != --check ]; then
  "${buf[@]}" generate
  exit
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"${buf[@]}" generate -o "$fresh"
status=0
while IFS= read -r file; do
  diff -u "$file" "$fresh/$file" || status=1
done < <({ find proto -name '*.pb.go'; cd "$fresh" && find proto -name '*.pb.go'; } | sort -u)
if [ "$status" -ne 0 ]; then
  echo 'the generated code is not what proto/ says: run `make generate` and commit the result' >&2
  exit 1
fi
echo "generated code: $(find "$fresh" -name '*.pb.go' | wc -l | tr -d ' ') files, generating again changes nothing"
