// Command cost measures what a credential costs through the broker: whole processes against an empty Go program and a bare go-plugin host, and whole look-ups by the kubelet's code through our one
// entry against the same providers as entries of their own. Everything is measured in turn within one run, so that the machine's moods fall on all alike; only the ratios
// travel. docs/performance.md shows a run and explains it.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/credentialprovider/plugin"
)

const request = `{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"%s"}`

// measured is one thing whose time is taken.
type measured struct {
	name string
	run  func() error
	took []time.Duration
}

func main() {
	rounds := flag.Int("rounds", 41, "how often each thing is measured")
	flag.Parse()
	if err := measure(*rounds); err != nil {
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(1)
	}
}

func measure(rounds int) error {
	klog.LogToStderr(false)
	dir, err := os.MkdirTemp("", "credential-broker-cost-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bench, err := prepare(dir)
	if err != nil {
		return err
	}
	all := bench.things()
	for round := range rounds + 2 {
		for _, m := range all {
			began := time.Now()
			if err := m.run(); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if round >= 2 { // the first two warm the caches
				m.took = append(m.took, time.Since(began))
			}
		}
	}
	report(all)
	return bench.memory()
}

// bench is the programs and configurations that are measured.
type bench struct{ dir string }

func prepare(dir string) (*bench, error) {
	b := &bench{dir}
	builds := []*exec.Cmd{
		exec.Command("make", "--silent", "--directory", "../..", "build", "OUT="+dir, "COMMANDS=./cmd/credential-broker ./cmd/credential-backend-exec"),
	}
	for out, pkg := range map[string]string{
		"empty": "./cost/empty", "bare": "./cost/bare", "bin/native-1": "./cost/native", "backends/credential-backend-trivial": "./cost/trivial",
	} {
		builds = append(builds, exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-o", filepath.Join(dir, out), pkg))
	}
	for _, build := range builds {
		build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w", build, err)
		}
	}
	var entries strings.Builder
	entry := func(name, args string, patterns ...string) {
		fmt.Fprintf(&entries, "- {name: %s, matchImages: [%s], defaultCacheDuration: 0s, apiVersion: credentialprovider.kubelet.k8s.io/v1, args: [%s]}\n",
			name, strings.Join(patterns, ", "), args)
	}
	for i := 1; i <= 4; i++ {
		name := "native-" + strconv.Itoa(i)
		if i > 1 {
			if err := os.Symlink("native-1", b.path("bin/"+name)); err != nil {
				return nil, err
			}
		}
		patterns := []string{"native4.example"}
		if i == 1 {
			patterns = append(patterns, "native1.example")
		}
		entry(name, "", patterns...)
	}
	for _, n := range []int{1, 4} {
		for _, backend := range []string{"trivial", "exec"} {
			if err := b.configure(backend, n); err != nil {
				return nil, err
			}
		}
		name := "broker-" + strconv.Itoa(n)
		if err := os.Symlink("../credential-broker", b.path("bin/"+name)); err != nil {
			return nil, err
		}
		entry(name, "--config, "+b.config("exec", n), "broker"+strconv.Itoa(n)+".example")
	}
	config := b.path("kubelet.yaml")
	if err := os.WriteFile(config, []byte("apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"+entries.String()), 0o600); err != nil {
		return nil, err
	}
	return b, plugin.RegisterCredentialProviderPlugins(config, b.path("bin"), nil, nil)
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) config(backend string, n int) string {
	return b.path(fmt.Sprintf("%s-%d.yaml", backend, n))
}

// configure writes a broker configuration of n providers.
func (b *bench) configure(backend string, n int) error {
	var text strings.Builder
	text.WriteString("apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\nproviders:\n")
	for i := 1; i <= n; i++ {
		settings := "{}"
		if backend == "exec" {
			settings = "{command: " + b.path("bin/native-1") + "}"
		}
		fmt.Fprintf(&text, "- {name: p%d, backend: %s, matchImages: [\"*.example\"], config: %s}\n", i, backend, settings)
	}
	return os.WriteFile(b.config(backend, n), []byte(text.String()), 0o600)
}

// The names under which results are compared.
const (
	empty    = "an empty Go program"
	bareOne  = "bare go-plugin host, 1 backend"
	bareFour = "bare go-plugin host, 4 backends"
	version  = "credential-broker version"
	nobody   = "credential-broker, no provider matches"
	trivial1 = "credential-broker, 1 trivial backend"
	trivial4 = "credential-broker, 4 trivial backends"
	backend  = "the trivial backend's start alone"
	native1  = "kubelet: 1 provider, natively"
	native4  = "kubelet: 4 providers, natively"
	broker1  = "kubelet: our entry, 1 provider (exec)"
	broker4  = "kubelet: our entry, 4 providers (exec)"
)

func (b *bench) things() []*measured {
	broker := b.path("credential-broker")
	ask := func(config, image string) func() error {
		return process(fmt.Sprintf(request, image), broker, "--config", config)
	}
	return []*measured{
		{name: empty, run: process("", b.path("empty"))},
		{name: bareOne, run: process("{}", b.path("bare"), "1")},
		{name: bareFour, run: process("{}", b.path("bare"), "4")},
		{name: version, run: process("", broker, "version")},
		{name: nobody, run: ask(b.config("trivial", 1), "other.invalid/app")},
		{name: backend, run: process("", b.path("backends/credential-backend-trivial"), "--version")},
		{name: trivial1, run: ask(b.config("trivial", 1), "a.example/app")},
		{name: trivial4, run: ask(b.config("trivial", 4), "a.example/app")},
		{name: native1, run: lookUp("native1.example/app", 1)},
		{name: native4, run: lookUp("native4.example/app", 4)},
		{name: broker1, run: lookUp("broker1.example/app", 1)},
		{name: broker4, run: lookUp("broker4.example/app", 1)},
	}
}

// process runs a whole process, request in to response out and exit.
func process(stdin, path string, args ...string) func() error {
	return func() error {
		cmd := exec.Command(path, args...)
		cmd.Stdin = strings.NewReader(stdin)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, errs.String())
		}
		return nil
	}
}

// lookUp is the kubelet's look-up of an image with its registered providers.
func lookUp(image string, want int) func() error {
	return func() error {
		found, _ := plugin.NewExternalCredentialProviderDockerKeyring("default", "pod", "uid", "").Lookup(image)
		if len(found) != want {
			return fmt.Errorf("%d credentials, not %d", len(found), want)
		}
		return nil
	}
}

func report(all []*measured) {
	byName := make(map[string]*measured)
	for _, m := range all {
		byName[m.name] = m
	}
	fmt.Printf("%-42s %9s %9s %9s %12s\n", "", "median", "fastest", "slowest", "× empty")
	for _, m := range all {
		sorted := slices.Sorted(slices.Values(m.took))
		fmt.Printf("%-42s %9s %9s %9s %12.2f\n", m.name, ms(median(m.took)), ms(sorted[0]), ms(sorted[len(sorted)-1]), ratio(m, byName[empty]))
	}
	fmt.Println()
	for _, pair := range []struct {
		what, a, b string
		goal       float64
	}{
		{"one backend, × an empty Go program", trivial1, empty, 9},
		{"four backends, × one", trivial4, trivial1, 1.8},
		{"one backend, × the bare go-plugin host", trivial1, bareOne, 0},
		{"four backends, × the bare go-plugin host", trivial4, bareFour, 0},
		{"kubelet with 1 provider: our entry, × natively", broker1, native1, 0},
		{"kubelet with 4 providers: our entry, × natively", broker4, native4, 0},
	} {
		goal := ""
		if pair.goal > 0 {
			goal = fmt.Sprintf("   (goal: at most %.1f)", pair.goal)
		}
		fmt.Printf("%-50s %6.2f%s\n", pair.what, ratio(byName[pair.a], byName[pair.b]), goal)
	}
	fmt.Println()
	for _, part := range []struct{ what, a, b string }{
		{"the broker's initialisation and command line", version, empty},
		{"reading the request and the configuration", nobody, version},
		{"starting, asking and ending one backend", trivial1, nobody},
		{"  of which the backend's own initialisation", backend, empty},
	} {
		fmt.Printf("%-50s %9s\n", part.what, ms(median(byName[part.a].took)-median(byName[part.b].took)))
	}
}

// ratio is the median of the ratios of a and b within each round.
func ratio(a, b *measured) float64 {
	ratios := make([]float64, len(a.took))
	for i := range a.took {
		ratios[i] = float64(a.took[i]) / float64(b.took[i])
	}
	return median(ratios)
}

func median[T ~int64 | ~float64](values []T) T {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// memory says what a broker and its backend occupy at their peak. The backend looks: the memory that the system reports of an ended child is, of a large parent's, the parent's.
func (b *bench) memory() error {
	file, config := b.path("memory"), b.path("memory.yaml")
	text := fmt.Sprintf("apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\nproviders:\n- {name: p, backend: trivial, matchImages: [\"*.example\"], config: {memoryFile: %s}}\n", file)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if err := process(fmt.Sprintf(request, "a.example/app"), b.path("credential-broker"), "--config", config)(); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	peaks, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var broker, backend float64 // KiB
	if _, err := fmt.Sscan(string(peaks), &broker, &backend); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	fmt.Printf("\npeak memory: broker %.1f MiB, backend %.1f MiB (resident, the touched pages of the programs' files included)\n", broker/1024, backend/1024)
	return nil
}
