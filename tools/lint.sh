#!/usr/bin/env bash
# All checks that run no test, over the modules in $MODULES. Every check runs, whatever became of the one before; what failed is
# listed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
failed=()
check() { # what, command...
  local what=$1 start=$SECONDS
  shift
  if "$@"; then
    printf 'ok    %s (%d s)\n' "$what" $((SECONDS - start))
  else
    printf 'FAIL  %s (%d s)\n' "$what" $((SECONDS - start))
    failed+=("$what")
  fi
}

# The files that are, or are about to be, part of the repository; all of them where it is no git work tree.
files() {
  git ls-files -z --cached --others --exclude-standard 2>/dev/null ||
    find . -name .git -prune -o -path ./bin -prune -o -type f -print0
}

formatted() {
  local bad
  bad=$(files | tr '\0' '\n' | grep '\.go$' | while IFS= read -r f; do if [ -f "$f" ]; then echo "$f"; fi; done | xargs gofmt -l)
  [ -z "$bad" ] || { printf '%s: not formatted, run `make fmt`\n' $bad; return 1; }
}

in_module() { (cd "$module" && "$@"); }

golangci() {
  (cd "$module" && go tool -modfile="$root/tools/go.mod" golangci-lint run --allow-parallel-runners --config "$root/.golangci.yml" $PKGS)
}

# Paths that exist on one person's machine only: this checkout's own, Go's folders here, and what home folders look like.
no_local_paths() {
  local patterns=('/Users/[A-Za-z]' '/home/[a-z]+/(go|src|git|code|dev|projects|work|workspace)/' '/root/go/') path
  for path in "$root" "$(go env GOPATH)" "$(go env GOMODCACHE)" "$(go env GOCACHE)"; do
    # A folder just below the root says nothing: a container may well have its checkout in /src.
    if [[ "$path" == /*/* ]]; then patterns+=("(^|[^A-Za-z0-9_./-])$(sed 's/[.[\*^$()+?{|]/\\&/g' <<<"$path")(/|[^A-Za-z0-9_.-]|\$)"); fi
  done
  local pattern
  pattern=$(IFS='|'; echo "${patterns[*]}")
  # Only this file may spell the patterns.
  ! files | grep -zvE '^(\./)?tools/lint\.sh$' | xargs -0 grep -nIE -e "$pattern" --
}

# A document that says which test shows something names one that exists.
tests_exist() {
  local missing=0 name
  while IFS= read -r name; do
    if ! files | grep -zE '_test\.go$' | xargs -0 grep -qE "^func $name\(" --; then
      files | grep -zE '\.md$' | xargs -0 grep -nw -e "$name" -- /dev/null
      echo "there is no test named $name"
      missing=1
    fi
  done < <(files | grep -zE '\.md$' | xargs -0 grep -hoE '\b(Test|Fuzz)[A-Z][A-Za-z0-9_]*' -- /dev/null | sort -u)
  return "$missing"
}

# Released messages keep their meaning (buf.yaml says by which rules). The first release's are kept as a file, the latest one's in its tag.
unbroken() {
  local tag buf=(go tool -modfile=tools/go.mod buf breaking)
  "${buf[@]}" --against test/upgrade/testdata/v0.1.0 || return 1
  if tag=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); then "${buf[@]}" --against ".git#tag=$tag"; fi
}

check gofmt formatted
check 'paths of one machine' no_local_paths
check 'tests that documents name' tests_exist
check 'buf lint' go tool -modfile=tools/go.mod buf lint
check 'buf format' go tool -modfile=tools/go.mod buf format --diff --exit-code
check 'buf breaking' unbroken
for module in $MODULES; do
  check "$module: go vet" in_module go vet $PKGS
  if grep -q 'k8s.io/kubernetes ' "$module/go.mod"; then echo "      $module: reads the kubelet's own code: about 5 minutes the first time"; fi
  check "$module: golangci-lint" golangci
done
for module in $MODULES tools $(dirname $(ls test/*/*/go.mod)); do
  check "$module: go mod tidy" in_module go mod tidy -diff
done

if [ "${#failed[@]}" -ne 0 ]; then
  printf '\n%d checks failed:\n' "${#failed[@]}" >&2
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
fi
