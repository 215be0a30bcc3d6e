#!/usr/bin/env bash
# Builds what is released, into dist/, which is emptied first: `make release` runs it. docs/release.md says what there is then. With --check it makes the release twice, in two clones whose
# paths, umask, time zone, language and build cache differ, and fails unless every file is the same, byte for byte. With --prepare VERSION it writes the version into the Kubernetes manifests, to be
# committed before the tag: they are files of the commit and of its archives, so a release of a tag does not write them, and refuses those that name another version.
set -euo pipefail
cd "$(dirname "$0")/.."
make=${MAKE:-make}
platforms=${PLATFORMS:-linux/amd64 linux/arm64 windows/amd64}
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
begun=$SECONDS

# Where a version stands in the manifests: file, how the line begins, what follows. A tag of an image has no plus sign.
manifests() { # version
  local chart=examples/kubernetes/helm/credential-broker/Chart.yaml
  printf '%s|%s|%s\n' \
    "$chart" 'version: ' "$1" \
    "$chart" 'appVersion: ' "$1" \
    examples/kubernetes/kustomize/base/daemonset.yaml '        image: ghcr.io/credential-broker/credential-broker:' "${1//+/-}"
}
if [ "${1:-}" = --prepare ]; then
  grep -qE '^[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$' <<<"${2:-}" || { echo 'say which version: tools/release.sh --prepare 0.1.0' >&2; exit 1; }
  while IFS='|' read -r file begins version; do
    sed -i.before "s|^$begins.*|$begins$version|" "$file" && rm "$file.before"
  done < <(manifests "$2")
  git diff --stat
  exit
fi

commit=$(git rev-parse --verify HEAD) || { echo 'a release is of a commit, and this is no clone of the repository' >&2; exit 1; }
if [ -n "$(git status --porcelain)" ]; then
  echo 'a release is of a commit, and this checkout has something else in it: commit it, or put it away (git status says what it is)' >&2
  exit 1
fi

if [ "${1:-}" = --check ]; then
  clone() { # path
    git clone -q --no-checkout . "$1"
    git -C "$1" checkout -q --detach "$commit"
  }
  once() { # path; the release there, with its own variables
    (cd "$1" && MAKEFLAGS='' "$make" release PLATFORMS="$platforms")
  }
  first=$work/a second=$work/a-second/one/with/a/longer/path
  clone "$first"
  clone "$second"
  once "$first"
  # A cache of its own: from the other, the second would get what the first compiled.
  (umask 077; TZ=Pacific/Apia LC_ALL=C GOCACHE=$work/cache once "$second")
  if ! diff <(cd "$first/dist" && sha256sum -- *) <(cd "$second/dist" && sha256sum -- *); then
    echo 'two builds of the same commit differ in the files above' >&2
    exit 1
  fi
  printf '\n%s\n%d files, made twice, with the same bytes (%d s)\n' "$(cat "$first/dist/SHA256SUMS")" "$(find "$first/dist" -type f | wc -l)" $((SECONDS - begun))
  exit
fi

: "${VERSION:?is the version to release: use make release}" "${COMMIT:?is the commit as the executables say it: use make release}"
if git tag --points-at "$commit" | grep -qxF "v$VERSION"; then
  wrong=$(while IFS='|' read -r file begins version; do grep -qxF "$begins$version" "$file" || echo "$file has no line: $begins$version"; done < <(manifests "$VERSION"))
  if [ -n "$wrong" ]; then
    printf '%s\nthe manifests would install another version than %s: tools/release.sh --prepare %s writes it; commit that, then move the tag\n' "$wrong" "$VERSION" "$VERSION" >&2
    exit 1
  fi
fi
SOURCE_DATE_EPOCH=$(git show --no-patch --format=%ct "$commit")
export VERSION COMMIT SOURCE_DATE_EPOCH
# What a person may have set for builds of their own. Each executable is asked afterwards whether that was all; some flags, such as -overlay, none of them says. Go takes an empty variable for none and
# then does as `go env -w` has said, which stays in force otherwise: modules may come by a mirror. So what undoes something is not empty, and no value is as good as none for experiments.
export GOFLAGS=-buildvcs=false GOWORK=off GOEXPERIMENT='' GOFIPS140=off GOAMD64=v1 GOARM64=v8.0 GO_EXTLINK_ENABLED=0
if [ -n "$(go env GOEXPERIMENT)" ]; then
  echo "a release is built without experiments of the compiler's: go env -u GOEXPERIMENT takes back $(go env GOEXPERIMENT)" >&2
  exit 1
fi
# What the packages' and the image's recipes would take from outside, the compiler's debugging variables, and makefiles to read before ours.
unset ARCH DIST IMAGE_PLATFORMS GOCOMPILEDEBUG GOCLOBBERDEADHASH GOSSAFUNC GOSSADIR MAKEFILES
release() { # subcommand, executables...
  local subcommand=$1
  shift
  "$work/release" "$subcommand" -version "$VERSION" -commit "$commit" -out dist "$@"
}

rm -rf dist
(cd tools/release && go build -buildvcs=false -o "$work/release" .)
tools/package/pages.sh "$work/pages"
share() { # platform, directory: what its archive has below share/
  local pages=$work/pages
  case $1 in
    windows/*) install -Dm 0644 "$pages/completion.powershell" "$2/powershell/credential-broker.ps1" ;;
    *)
      mkdir -p "$2/man/man8"
      cp "$pages"/man/*.8 "$2/man/man8/"
      install -Dm 0644 "$pages/completion.bash" "$2/bash-completion/completions/credential-broker"
      install -Dm 0644 "$pages/completion.zsh" "$2/zsh/site-functions/_credential-broker"
      install -Dm 0644 "$pages/completion.fish" "$2/fish/vendor_completions.d/credential-broker.fish"
      ;;
  esac
}
built=()
for platform in $platforms; do
  start=$SECONDS
  out=$work/${platform/\//_}
  GOOS=${platform%/*} GOARCH=${platform#*/} "$make" build OUT="$out"
  if [ "$platform" = "$(go env GOHOSTOS)/$(go env GOHOSTARCH)" ]; then
    # The helpers of backends say it in their one error, which a person gets who starts them.
    for program in "$out"/credential-broker{,-installer} "$out"/backends/*; do
      said=$("$program" "$([ "${program##*/}" = credential-broker ] && echo version || echo --version)" </dev/null 2>&1) || true
      grep -qF " $VERSION" <<<"$said" || { echo "${program##*/} does not say that it is version $VERSION: $said" >&2; exit 1; }
    done
  fi
  share "$platform" "$work/share/$platform"
  release archive -share "$work/share/$platform" "$out"
  built+=("$out")
  printf '            %s (%d s)\n' "$platform" $((SECONDS - start))
done

# The packages and the container image: what they leave in dist/ is covered by provenance and checksums like everything else.
"$make" packages
"$make" image

release sums "${built[@]}"
printf 'dist/: credential-broker %s of commit %s (%d s)\n' "$VERSION" "$commit" $((SECONDS - begun))
