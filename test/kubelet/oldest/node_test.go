package oldest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	_ "unsafe" // for go:linkname

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/plugin"
)

const (
	v1       = "credentialprovider.kubelet.k8s.io/v1"
	v1beta1  = "credentialprovider.kubelet.k8s.io/v1beta1"
	v1alpha1 = "credentialprovider.kubelet.k8s.io/v1alpha1"
)

var (
	flagSets = flag.Int("sets", 60, "generated provider sets")
	flagSeed = flag.Uint64("seed", 0, "seed of the generated sets; 0 takes one from the clock")
	flagKlog = flag.Bool("klog", false, "let the kubelet's code log to standard error")
)

// scratch has the broker, the exec backend and the make-believe provider, built from the tree that the test stands in.
var scratch string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if !*flagKlog {
		// This klog prefers standard error to what SetOutput names, until it is told.
		quiet := flag.NewFlagSet("klog", flag.PanicOnError)
		klog.InitFlags(quiet)
		_ = quiet.Set("logtostderr", "false")
		_ = quiet.Set("stderrthreshold", "FATAL")
		klog.SetOutput(&bytes.Buffer{})
	}
	dir, err := os.MkdirTemp("", "credential-broker-test-oldest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	scratch = dir
	for _, cmd := range []*exec.Cmd{
		exec.Command("make", "--silent", "--directory", "../../..", "build", "OUT="+filepath.Join(dir, "built"), "COMMANDS=./cmd/credential-broker ./cmd/credential-backend-exec"),
		exec.Command("go", "-C", "..", "build", "-o", filepath.Join(dir, "stub"), "./stub"),
	} {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", cmd, err, out)
			return 1
		}
	}
	return m.Run()
}

// The kubelet registers its providers once in a process's life, here. Exchanging the map is what lets one process be many kubelets, each with its own cache.
//
//go:linkname registered k8s.io/kubernetes/pkg/credentialprovider.providers
var registered map[string]credentialprovider.DockerConfigProvider

// node is one kubelet with its registered providers and their caches.
type node map[string]credentialprovider.DockerConfigProvider

// startNode has the kubelet read, validate and register a configuration.
func startNode(configPath, binDir string) (node, error) {
	registered = node{}
	err := plugin.RegisterCredentialProviderPlugins(configPath, binDir)
	return registered, err
}

// lookup is what the kubelet would try for the image, in order, without repetitions.
func (n node) lookup(image string) []value {
	registered = n
	found, _ := credentialprovider.NewDockerKeyring().Lookup(image)
	values := []value{}
	for _, f := range found {
		if v := (value{f.Username, f.Password}); !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	return values
}

type value struct{ Username, Password string }

// answer is what a provider says of an image, in the words of test/kubelet/internal/behaviour.
type answer struct {
	Auth          map[string]value
	CacheKeyType  string
	CacheDuration string
	Fault         string `json:",omitempty"`
}

type envVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// entry is one of the providers of a CredentialProviderConfig, in the words of the file.
type entry struct {
	Name                 string   `json:"name"`
	APIVersion           string   `json:"apiVersion"`
	MatchImages          []string `json:"matchImages"`
	DefaultCacheDuration string   `json:"defaultCacheDuration"`
	Args                 []string `json:"args,omitempty"`
	Env                  []envVar `json:"env,omitempty"`
}

// provider is an entry, and what the program behind it says: by image, or by registry, or for all ("*").
type provider struct {
	entry
	answers map[string]answer
}

// says is a provider of one answer for everything.
func says(name string, auth map[string]value) provider {
	return provider{
		entry:   entry{Name: name, APIVersion: v1, MatchImages: []string{"*.io", "docker.io"}, DefaultCacheDuration: "1h"},
		answers: map[string]answer{"*": {Auth: auth, CacheKeyType: "Image", CacheDuration: "1h"}},
	}
}

// stage is the file system of two nodes: one whose kubelet runs the providers, one whose kubelet runs the broker, which runs them.
type stage struct {
	t   testing.TB
	dir string
}

func newStage(t testing.TB, policy string, providers ...provider) stage {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "set-")
	if err != nil {
		t.Fatal(err)
	}
	s := stage{t, dir}
	type object = map[string]any
	var entries []entry
	var ours []object
	for _, side := range []string{"native", "wrapped", "bin"} {
		if err := os.Mkdir(s.path(side), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range providers {
		for _, side := range []string{"native", "wrapped"} {
			if err := os.Link(filepath.Join(scratch, "stub"), s.path(side, p.Name)); err != nil {
				t.Fatal(err)
			}
			s.write(side+"/"+p.Name+".json", document(t, object{"Answers": p.answers}))
		}
		entries = append(entries, p.entry)
		ours = append(ours, object{
			"name": p.Name, "backend": "exec", "matchImages": p.MatchImages, "defaultCacheDuration": p.DefaultCacheDuration, "timeout": "40s",
			"config": object{"command": s.path("wrapped", p.Name), "apiVersion": p.APIVersion},
		})
	}
	if err := os.Symlink(filepath.Join(scratch, "built", "credential-broker"), s.path("bin", "credential-broker")); err != nil {
		t.Fatal(err)
	}
	s.write("native.json", providerConfig(t, entries...))
	s.write("config.yaml", document(t, object{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "overlapPolicy": policy, "timeout": "50s", "providers": ours}))
	return s
}

func document(t testing.TB, of any) []byte {
	t.Helper()
	out, err := json.Marshal(of)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func providerConfig(t testing.TB, entries ...entry) []byte {
	t.Helper()
	return document(t, map[string]any{"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": entries})
}

func (s stage) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s stage) write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// command runs one of the broker's commands and returns what it prints.
func (s stage) command(args ...string) []byte {
	s.t.Helper()
	cmd := exec.Command(s.path("bin", "credential-broker"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("credential-broker %s: %v\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out.Bytes()
}

// starts are how often a provider was run, and what it was shown: one line for each start.
func (s stage) starts(side, name string) []string {
	s.t.Helper()
	data, err := os.ReadFile(s.path(side, name+".log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		s.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func (s stage) start(config, binDir string) node {
	s.t.Helper()
	n, err := startNode(s.path(config), s.path(binDir))
	if err != nil {
		data, _ := os.ReadFile(s.path(config))
		s.t.Fatalf("the kubelet refuses the configuration: %v\n%s", err, data)
	}
	return n
}

// native is the node with an entry for each provider.
func (s stage) native() node { return s.start("native.json", "native") }

// printed is the node with what kubelet-config prints, byte for byte.
func (s stage) printed() node {
	s.t.Helper()
	s.write("ours.yaml", s.command("kubelet-config", "--config", s.path("config.yaml")))
	return s.start("ours.yaml", "bin")
}

// wide is the broker's entry for everything, so that whether a pattern matches is the broker's to say.
func (s stage) wide(apiVersion string) entry {
	return entry{
		Name: "credential-broker", APIVersion: apiVersion, DefaultCacheDuration: "0s", Args: []string{"--config", s.path("config.yaml")},
		MatchImages: []string{"*", "*.*", "*.*.*", "*.*.*.*", "*:5000", "*.*:5000", "*.*.*:5000", "*.*.*.*:5000"},
	}
}

func (s stage) ours(e entry) node {
	s.t.Helper()
	s.write("ours.json", providerConfig(s.t, e))
	return s.start("ours.json", "bin")
}
