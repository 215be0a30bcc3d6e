#!/usr/bin/env bash
# Writes the manual pages (DIRECTORY/man/*.8) and the shells' completions (DIRECTORY/completion.SHELL), which are the same on all platforms, of the program as this machine builds it.
# $VERSION and $COMMIT are the Makefile's, $SOURCE_DATE_EPOCH is the commit's time.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${1:?the directory to write to}" "${VERSION:?}" "${COMMIT:?}" "${SOURCE_DATE_EPOCH:?}"
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${MAKE:-make}" broker OUT="$work" VERSION="$VERSION" COMMIT="$COMMIT" >/dev/null
program=$work/credential-broker
mkdir -p "$out/man"
"$program" manual | (cd tools && go run ./package/manual -version "$VERSION" -date "$SOURCE_DATE_EPOCH" "$out/man")
for shell in bash fish powershell zsh; do "$program" completion "$shell" >"$out/completion.$shell"; done
