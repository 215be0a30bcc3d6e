// Command demo shows the broker at work on this machine, without root and without the Internet: a private registry, three backends, one answer, and a pull that works
// because of it, with an agent too. Every line with a tick was checked a moment before it was printed; one that does not hold ends the demo with exit status 1.
//
// It runs the built executables (`make demo` builds them) and has its own files in a private temporary directory, so that it can run beside itself.
//
// With -vault it is another play, with a real Vault server: `make demo-vault`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	root := flag.String("root", "../..", "the repository, with bin/ built")
	vault := flag.Bool("vault", false, "show what Vault is good for, in place of the rest")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	show := run
	if *vault {
		show = runVault
	}
	err := show(ctx, *root, newScreen(os.Stdout))
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		os.Exit(1)
	case errors.Is(err, errDoesNotHold):
		os.Exit(1) // it has been shown
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// longest bounds the whole demo, so that it fails rather than hangs.
const longest = 2 * time.Minute

func run(ctx context.Context, root string, s *screen) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	d := &demo{screen: s}
	err := inTurn(ctx, func(ctx context.Context) error { return d.prepare(ctx, root) }, d.privateRegistry, d.whoIsAsked, d.oneAnswer, d.oneDies, d.throughAnAgent)
	if err := errors.Join(err, d.close()); err != nil {
		return err
	}
	d.epilogue()
	return nil
}

// inTurn plays acts until one fails.
func inTurn(ctx context.Context, acts ...func(context.Context) error) error {
	for _, act := range acts {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// demo is what the acts share.
type demo struct {
	*screen
	dir      string // private; everything the demo writes is in it
	broker   string // the built executable
	registry *registry
	image    string // as the kubelet names it
	agent    string // the socket of the agent that is asked; empty: none
}

// prepare makes all that the first play needs. The example backend is built from its source.
func (d *demo) prepare(ctx context.Context, root string) error {
	if err := d.open(root, "dockerconfig", "exec"); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(d.dir, "backends", "credential-backend-userfile"), ".")
	build.Dir = filepath.Join(root, "examples", "backend-go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", build.Dir, err, out)
	}
	return d.configure()
}

// open makes the directory and the registry, and puts the executables where only this user can write, whoever owns the clone: a broker refuses others.
func (d *demo) open(root string, backends ...string) error {
	var err error
	if _, err := os.Stat(filepath.Join(root, "bin", "credential-broker")); err != nil {
		return fmt.Errorf("%w: build it first, with `make build` in %s", err, root)
	}
	if d.dir, err = os.MkdirTemp("", "credential-broker-demo-"); err != nil { // mode 0700
		return err
	}
	if d.dir, err = filepath.EvalSymlinks(d.dir); err != nil {
		return err
	}
	if d.registry, err = startRegistry(); err != nil {
		return err
	}
	d.image = d.registry.host + "/team/app"
	d.broker = filepath.Join(d.dir, "credential-broker")
	if err := errors.Join(os.Mkdir(filepath.Join(d.dir, "backends"), 0o700), copyExecutable(filepath.Join(root, "bin", "credential-broker"), d.broker)); err != nil {
		return err
	}
	for _, name := range backends {
		file := filepath.Join("backends", "credential-backend-"+name)
		if err := copyExecutable(filepath.Join(root, "bin", file), filepath.Join(d.dir, file)); err != nil {
			return err
		}
	}
	return nil
}

func copyExecutable(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o700)
}

// close leaves nothing behind.
func (d *demo) close() error {
	var errs []error
	if d.registry != nil {
		errs = append(errs, d.registry.close())
		d.registry = nil
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
		d.dir = ""
	}
	return errors.Join(errs...)
}
