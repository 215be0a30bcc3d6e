package kubelet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

// built is what the tests of this file run: the broker with its backends beside it, and the make-believe provider.
type built struct {
	broker, stub string
}

// build compiles the programs once, as releases are built. They are those of the tree that the test stands in, not what may lie in bin/.
var build = sync.OnceValues(func() (built, error) {
	b := built{broker: filepath.Join(scratchDir, "built", "credential-broker"), stub: filepath.Join(scratchDir, "stub")}
	for _, cmd := range []*exec.Cmd{
		exec.Command("make", "--silent", "--directory", "../..", "build", "OUT="+filepath.Dir(b.broker), "COMMANDS=./cmd/credential-broker ./cmd/credential-backend-exec"),
		exec.Command("go", "build", "-o", b.stub, "./stub"),
	} {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
	}
	return b, nil
})

func programs(t testing.TB) built {
	t.Helper()
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stage is the file system of two nodes: one whose kubelet runs the providers, one whose kubelet runs the broker, which runs them.
type stage struct {
	built
	dir string
}

// newStage writes a set's providers: <dir>/native/<name> and <dir>/wrapped/<name>, each a program with its behaviour beside it.
func newStage(t testing.TB, s scenario) *stage {
	t.Helper()
	dir, err := os.MkdirTemp(scratchDir, "set-")
	if err != nil {
		t.Fatal(err)
	}
	st := &stage{built: programs(t), dir: dir}
	for _, side := range []string{"native", "wrapped", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, side), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range s.Providers {
		plays, err := json.Marshal(p.Behaviour)
		if err != nil {
			t.Fatal(err)
		}
		for _, side := range []string{"native", "wrapped"} {
			program := filepath.Join(dir, side, p.Name)
			if err := os.Link(st.stub, program); err != nil {
				t.Fatal(err)
			}
			write(t, program+".json", plays)
		}
	}
	if err := os.Symlink(st.broker, filepath.Join(dir, "bin", "credential-broker")); err != nil {
		t.Fatal(err)
	}
	return st
}

func (st *stage) remove() { _ = os.RemoveAll(st.dir) }

func (st *stage) path(parts ...string) string {
	return filepath.Join(append([]string{st.dir}, parts...)...)
}

// step tells the providers the number of the lookup.
func (st *stage) step(t testing.TB, n int) {
	for _, side := range []string{"native", "wrapped"} {
		write(t, st.path(side, "step"), []byte(strconv.Itoa(n)))
	}
}

// takeViews returns what a provider was shown since the last time, one line for each start.
func (st *stage) takeViews(t testing.TB, side, name string) []string {
	t.Helper()
	log := st.path(side, name+".log")
	data, err := os.ReadFile(log)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run executes one of the broker's commands, which has to succeed, and returns its standard output.
func (st *stage) run(t fataler, args ...string) []byte {
	cmd := exec.Command(st.broker, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	if err := cmd.Run(); err != nil {
		t.Fatalf("credential-broker %s: %v\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out.Bytes()
}

// brokerConfig is the set as a BrokerConfig of exec backends. JSON is YAML.
func (s scenario) brokerConfig(st *stage) []byte {
	type object = map[string]any
	var providers []object
	for _, p := range s.Providers {
		one := object{
			"name": p.Name, "backend": "exec", "matchImages": p.MatchImages, "defaultCacheDuration": p.DefaultCacheDuration, "timeout": "40s",
			"config": object{"command": st.path("wrapped", p.Name), "apiVersion": p.APIVersion},
		}
		if p.TokenAttributes != nil {
			one["tokenAttributes"] = p.TokenAttributes
		}
		providers = append(providers, one)
	}
	out, err := json.MarshalIndent(object{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "overlapPolicy": s.Policy, "timeout": "50s", "providers": providers}, "", "  ")
	if err != nil {
		panic(err)
	}
	return out
}

// agreementOfBinary is agreement with processes: the kubelet's code starts the providers on one side, the built broker on the other.
func agreementOfBinary(t *rapid.T, tb testing.TB, s scenario, ours func(st *stage) (*node, error)) {
	provided.Add(1)
	st := newStage(tb, s)
	defer st.remove()
	write(tb, st.path("native.json"), providerConfig(s.entries()))
	write(tb, st.path("config.yaml"), s.brokerConfig(st))
	nativeNode, err := startNode(st.path("native.json"), st.path("native"), apiServer)
	if err != nil {
		t.Fatalf("the kubelet refuses the providers' configuration: %v", err)
	}
	ourNode, err := ours(st)
	if err != nil {
		t.Fatalf("the kubelet refuses the broker's entry: %v", err)
	}
	for step, image := range s.Images {
		st.step(tb, step)
		want := expect(s.Policy, image, nativeNode.lookup(image, pod{}), nativeNode.configs(image, pod{}))
		got := ourNode.lookup(image, pod{})
		starts.Add(1)
		if why := want.differs(got); why != "" {
			t.Fatalf("lookup %d, %s under %s: %s\nseparate entries: %v\nbroker's entry:   %v\n%s", step, image, s.Policy, why, want.values, got, st.explain(image))
		}
		agreed.Add(1)
		if len(got) > 1 && s.Policy == "Fallback" {
			fallbacks.Add(1)
		}
	}
}

// explain runs the broker once more by hand, for what it says on standard error.
func (st *stage) explain(image string) string {
	cmd := exec.Command(st.broker, "--config", st.path("config.yaml"))
	request, err := json.Marshal(behaviour.Request{APIVersion: behaviour.V1, Kind: "CredentialProviderRequest", Image: image})
	if err != nil {
		return err.Error()
	}
	cmd.Stdin = bytes.NewReader(request)
	out, err := cmd.CombinedOutput()
	return fmt.Sprintf("asked by hand: %v\n%s", err, out)
}

func TestBinaryAgreesOnGeneratedProviderSets(t *testing.T) {
	checks(*flagBinary)
	sets := scenarios(shape{maxProviders: 6, maxImages: 4, faults: true})
	rapid.Check(t, func(r *rapid.T) {
		s := sets.Draw(r, "set")
		agreementOfBinary(r, t, s, func(st *stage) (*node, error) {
			write(t, st.path("ours.json"), providerConfig([]entry{{
				Name: "credential-broker", APIVersion: s.EntryAPI, DefaultCacheDuration: "0s", MatchImages: s.union(),
				Args: []string{"--config", st.path("config.yaml")},
			}}))
			return startNode(st.path("ours.json"), st.path("bin"), apiServer)
		})
	})
}

func TestBinaryAgreesWithTheEntryThatKubeletConfigPrints(t *testing.T) {
	checks(max(1, *flagBinary/3))
	sets := scenarios(shape{maxProviders: 6, maxImages: 3, faults: true})
	rapid.Check(t, func(r *rapid.T) {
		s := sets.Draw(r, "set")
		agreementOfBinary(r, t, s, func(st *stage) (*node, error) {
			printed := st.run(r, "kubelet-config", "--config", st.path("config.yaml"))
			write(t, st.path("ours.yaml"), printed)
			return startNode(st.path("ours.yaml"), st.path("bin"), apiServer)
		})
	})
}

func TestBinaryAgreesAfterMigration(t *testing.T) {
	checks(max(1, *flagBinary/3))
	sets := scenarios(shape{maxProviders: 6, maxImages: 3, faults: true})
	rapid.Check(t, func(r *rapid.T) {
		s := sets.Draw(r, "set")
		s.Policy = "Fallback" // what migrate writes
		for i := range s.Providers {
			s.Providers[i].Args = []string{"--flag", "a b", "$HOME", `quote " and \`}
			s.Providers[i].Env = []envVar{{Name: "STUB_ENV", Value: "value of " + s.Providers[i].Name}}
		}
		agreementOfBinary(r, t, s, func(st *stage) (*node, error) {
			migrated := st.run(r, "migrate", st.path("native.json"), "--bin-dir", st.path("wrapped"))
			write(t, st.path("config.yaml"), migrated)
			printed := st.run(r, "kubelet-config", "--config", st.path("config.yaml"))
			write(t, st.path("ours.yaml"), printed)
			return startNode(st.path("ours.yaml"), st.path("bin"), apiServer)
		})
	})
}

func TestBinaryShowsTokensToTheSameProviders(t *testing.T) {
	checks(max(1, *flagBinary/3))
	sets := scenarios(shape{maxProviders: 5, maxImages: 3, tokens: true})
	rapid.Check(t, func(r *rapid.T) { tokensOfBinary(r, t, sets.Draw(r, "set"), false) })
}

func TestBinaryShowsTokensToTheSameProvidersAfterMigration(t *testing.T) {
	checks(max(1, *flagBinary/5))
	sets := scenarios(shape{maxProviders: 5, maxImages: 3, tokens: true})
	rapid.Check(t, func(r *rapid.T) { tokensOfBinary(r, t, sets.Draw(r, "set"), true) })
}

// tokensOfBinary has the broker run under all the entries that kubelet-config prints for a set with several audiences. Nothing is cached: each lookup is a new node's.
func tokensOfBinary(t *rapid.T, tb testing.TB, s scenario, migrate bool) {
	provided.Add(1)
	st := newStage(tb, s)
	defer st.remove()
	write(tb, st.path("native.json"), providerConfig(s.entries()))
	config := s.brokerConfig(st)
	if migrate {
		s.Policy = "Fallback"
		config = st.run(t, "migrate", st.path("native.json"), "--bin-dir", st.path("wrapped"))
	}
	write(tb, st.path("config.yaml"), config)
	st.run(t, "kubelet-config", "--config", st.path("config.yaml"), "--link", "--bin-dir", st.path("bin"))
	printed := st.run(t, "kubelet-config", "--config", st.path("config.yaml"))
	write(tb, st.path("ours.yaml"), printed)
	for step, image := range s.Images {
		st.step(tb, step)
		nativeNode, err := startNode(st.path("native.json"), st.path("native"), apiServer)
		if err != nil {
			t.Fatalf("the kubelet refuses the providers' configuration: %v", err)
		}
		ourNode, err := startNode(st.path("ours.yaml"), st.path("bin"), apiServer)
		if err != nil {
			t.Fatalf("the kubelet refuses the broker's entries: %v\n%s", err, printed)
		}
		p := s.Pods[step]
		got := once(ourNode.lookup(image, p))
		starts.Add(int64(len(ourNode.providers)))
		_ = nativeNode.lookup(image, p)
		for _, provider := range s.Providers {
			native, ours := st.takeViews(tb, "native", provider.Name), st.takeViews(tb, "wrapped", provider.Name)
			if !slices.Equal(native, ours) {
				t.Fatalf("lookup %d, %s for %+v: the kubelet shows provider %s\n%s\nthe broker shows it\n%s\nentries: %s", step, image, p, provider.Name, native, ours, printed)
			}
		}
		// Merging holds within an entry: between entries the values are the same, their order need not be.
		var want []behaviour.Value
		anyOrder := false
		for _, group := range s.byAudience() {
			write(tb, st.path("group.json"), providerConfig(group.entries()))
			n, err := startNode(st.path("group.json"), st.path("native"), apiServer)
			if err != nil {
				t.Fatalf("the kubelet refuses the providers of one audience: %v", err)
			}
			e := expect(s.Policy, image, n.lookup(image, p), n.configs(image, p))
			anyOrder = anyOrder || e.anyOrder || e.instead != nil
			want = append(want, e.values...)
			for _, provider := range group.Providers {
				st.takeViews(tb, "native", provider.Name)
			}
		}
		if !anyOrder && !isDefaultRegistryMatch(image) && !sameSet(once(want), got) {
			t.Fatalf("lookup %d, %s for %+v under %s: separate entries %v, broker's entries %v\nentries: %s", step, image, p, s.Policy, once(want), got, printed)
		}
		agreed.Add(1)
	}
}

func sameSet(a, b []behaviour.Value) bool {
	compare := func(x, y behaviour.Value) int {
		return strings.Compare(x.Username+"\x00"+x.Password, y.Username+"\x00"+y.Password)
	}
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, compare)
	slices.SortFunc(b, compare)
	return slices.Equal(a, b)
}
