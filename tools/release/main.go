// Release makes of built executables what is released: an archive for each platform with an SBOM, and over everything in the folder provenance and checksums. tools/release.sh, which `make
// release` runs, calls it; docs/release.md says what comes of it.
//
//	release archive -commit HASH -version VERSION -share DIR -out DIR BUILT      an archive, and its SBOM, of the executables below BUILT (bin/ of `make build`)
//	release sums -commit HASH -version VERSION -out DIR BUILT...      provenance and SHA256SUMS of all files in DIR
//
// The same commit gives the same bytes, whoever builds it, where and when: times are the commit's, entries are sorted, owners and modes are fixed, and what an SBOM says is read from the
// executables and from the sources that they name. What would say more than that (the path of a checkout, a flag of the builder's own) is refused.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// project is the main module, and source is where it is.
	project = "github.com/credential-broker/credential-broker"
	source  = "https://" + project
	// name is what the files' names begin with.
	name = "credential-broker"
)

// release is what all of its files have in common.
type release struct {
	repo    string // the checkout
	version string // without v
	commit  string // in full
	time    time.Time
	out     string // the folder for what is made
}

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "release: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say `archive` or `sums`")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	repo := flags.String("repo", ".", "the checkout")
	version := flags.String("version", "", "the release's version")
	commit := flags.String("commit", "HEAD", "the commit that was built")
	share := flags.String("share", "", "the folder of what an archive has below share/")
	out := flags.String("out", "dist", "the folder for what is made")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	r, err := newRelease(ctx, *repo, *version, *commit, *out)
	if err != nil {
		return err
	}
	switch {
	case args[0] == "archive" && flags.NArg() == 1:
		return r.archive(ctx, flags.Arg(0), *share)
	case args[0] == "sums" && flags.NArg() > 0:
		return r.sums(ctx, flags.Args())
	}
	return fmt.Errorf("%s: say `archive BUILT` or `sums BUILT...`", strings.Join(args, " "))
}

// newRelease asks git for what there is to know of the commit.
func newRelease(ctx context.Context, repo, version, commit, out string) (*release, error) {
	if version == "" {
		return nil, errors.New("a release has a -version")
	}
	r := &release{repo: repo, version: version, out: out}
	told, err := r.git(ctx, "show", "--no-patch", "--format=%H %ct", commit+"^{commit}")
	if err != nil {
		return nil, err
	}
	hash, seconds, _ := strings.Cut(strings.TrimSpace(string(told)), " ")
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("the time of commit %s: %w", hash, err)
	}
	r.commit, r.time = hash, time.Unix(unix, 0).UTC()
	return r, os.MkdirAll(out, 0o755) //nolint:gosec // what is published is no secret
}

func (r *release) git(ctx context.Context, args ...string) ([]byte, error) {
	return output(ctx, "git", append([]string{"-C", r.repo}, args...)...)
}

func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, program, args...).Output() //nolint:gosec // the programs and their arguments are this file's own
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}

// archive makes the archive of one platform, and its SBOM. What is in share, manual pages and completions, goes with it; empty for none.
func (r *release) archive(ctx context.Context, built, share string) error {
	programs, err := readPrograms(ctx, built, r.repo)
	if err != nil {
		return err
	}
	system := programs[0].setting("GOOS")
	base := strings.Join([]string{name, r.version, system, programs[0].setting("GOARCH")}, "_")
	cache, err := newModules(ctx)
	if err != nil {
		return err
	}
	linked, err := cache.linkedInto(programs)
	if err != nil {
		return err
	}
	entries, err := r.documents(ctx, system)
	if err != nil {
		return err
	}
	for _, p := range programs {
		// The linker says nothing of a variable that is not there, and an executable nothing of the linker's flags.
		if told, err := p.holds(r.version); err != nil {
			return err
		} else if !told {
			return fmt.Errorf("%s: does not hold the version %s: its main package needs a variable `version` that it uses, which the Makefile has the linker set", p.path, r.version)
		}
		entries = append(entries, entry{path: p.path, mode: 0o755, content: p.content})
	}
	links, err := readLinks(built)
	if err != nil {
		return err
	}
	entries = append(entries, links...)
	shared, err := readShare(share)
	if err != nil {
		return err
	}
	entries = append(entries, shared...)
	entries = append(entries, entry{path: "LICENSES-third-party.txt", mode: 0o644, content: licenceTexts(linked)})

	pack, suffix := packTarGz, ".tar.gz"
	if system == "windows" {
		pack, suffix = packZip, ".zip"
	}
	packed, err := pack(base, entries, r.time)
	if err != nil {
		return err
	}
	if err := r.write(base+suffix, packed); err != nil {
		return err
	}
	bill, err := r.sbom(base+suffix, packed, programs, linked)
	if err != nil {
		return err
	}
	return r.write(base+".spdx.json", bill)
}

func (r *release) write(file string, content []byte) error {
	fmt.Printf("%10d  %s\n", len(content), file)
	return os.WriteFile(filepath.Join(r.out, file), content, 0o644) //nolint:gosec // what is published is no secret
}
