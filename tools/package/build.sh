#!/usr/bin/env bash
# Builds dist/*.deb and dist/*.rpm for Linux, for each of $ARCH. The same commit makes the same bytes: times are the commit's, and nothing of the machine goes in. $VERSION and $COMMIT are the Makefile's.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${VERSION:?make packages says it}" "${COMMIT:?make packages says it}" "${ARCH:=amd64 arm64}" "${DIST:=dist}"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

# A version of Git's is one of a package's: 1.2.0-rc.1 is before 1.2.0 (~), 1.2.0-5-gabcdef is after it (+). Neither knows a hyphen.
if [[ $VERSION =~ ^(.*)-([0-9]+)-g([0-9a-f]+)(-dirty)?$ ]]; then
  PACKAGE_VERSION=${BASH_REMATCH[1]/-/\~}+${BASH_REMATCH[2]}.g${BASH_REMATCH[3]}${BASH_REMATCH[4]/-/.}
elif [[ $VERSION == *-dirty ]]; then
  PACKAGE_VERSION=${VERSION%-dirty}
  PACKAGE_VERSION=${PACKAGE_VERSION/-/\~}+dirty
else
  PACKAGE_VERSION=${VERSION/-/\~}
fi
PACKAGE_VERSION=${PACKAGE_VERSION//-/.}
export PACKAGE_VERSION

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$DIST"
dist=$(cd "$DIST" && pwd)
go build -o "$work/nfpm" -modfile=tools/go.mod github.com/goreleaser/nfpm/v2/cmd/nfpm

common=$work/common
mkdir -p "$common"/{doc,examples}
tools/package/pages.sh "$common"
gzip -9n "$common"/man/*.8
cp docs/*.md "$common/doc/"
gzip -9n <CHANGELOG.md >"$common/doc/changelog.gz"
cp -r examples/broker examples/vault "$common/examples/"
cp LICENSE examples/systemd/credential-broker.{service,socket} "$common/"
cp -r tools/package/{deb,rpm,environment,lintian-overrides,nfpm.yaml} "$common/"
{
  printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: credential-broker\nSource: https://github.com/credential-broker/credential-broker\n\n'
  printf 'Files: *\nCopyright: 2026 The credential-broker authors\nLicense: Apache-2.0\n On Debian systems the whole text is in /usr/share/common-licenses/Apache-2.0.\n'
} >"$common/copyright"
date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
printf -- '- semver: %s-1\n  date: %s\n  packager: The credential-broker authors <credential-broker@users.noreply.github.com>\n  deb: {urgency: medium, distributions: [stable]}\n  changes: [{note: "Version %s, of commit %s."}]\n' \
  "$PACKAGE_VERSION" "$date" "$VERSION" "$COMMIT" >"$common/changelog.yaml"

for ARCH in $ARCH; do
  export ARCH
  stage=$work/$ARCH
  cp -r "$common" "$stage"
  GOOS=linux GOARCH=$ARCH make build OUT="$stage" VERSION="$VERSION" COMMIT="$COMMIT" >/dev/null
  find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  for packager in deb rpm; do
    (cd "$stage" && "$work/nfpm" package --config nfpm.yaml --packager "$packager" --target "$dist/")
  done
done
