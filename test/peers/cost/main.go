// Command cost measures what a token of ECR costs through the broker, against the official provider called directly: whole processes, request in to response out, cold and through an agent;
// the same of one of Google's, beside ECR's and both together, of one of Azure's and of a credential of Vault's; then many requests at once and in a row, and the agent's memory. Everything is measured in turn within one run, so that the machine's moods fall on all alike; only the ratios travel. The
// fake cloud is one process besides, which serves both, and which must have done the same work for both where nothing is kept. docs/performance.md shows a run and explains it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// measured is one thing whose time is taken.
type measured struct {
	name string
	cmd  func() *exec.Cmd
	// work is what the cloud did for it, each time.
	work work
	// after reads the output, if that is of use.
	after func(stdout []byte) error
	took  []time.Duration
}

// goals of the ratio between ours and the official provider's, or an empty program's. Not every ratio has one beyond.
type goals struct{ goal, beyond float64 }

var (
	coldGoals  = goals{1.8, 1.5}
	warmGoals  = goals{0.22, 0.18}
	emptyGoals = goals{1.6, 1.3}
)

func (g goals) String() string {
	if g.beyond == 0 {
		return fmt.Sprintf("(goal: at most %g)", g.goal)
	}
	return fmt.Sprintf("(goal: at most %g, beyond: %g)", g.goal, g.beyond)
}

func main() {
	rounds := flag.Int("rounds", 41, "how often each request is measured")
	parts := flag.String("parts", "requests,google,azure,vault,storm,memory", "what is measured")
	idle := flag.Bool("idle", false, "wait for the agent to stop idle backends, which takes five minutes, and measure its memory then")
	serve := flag.Bool("serve", false, "be the fake cloud (for this program's own use)")
	flag.Parse()
	var err error
	if *serve {
		err = serveCloud()
	} else {
		err = measure(strings.Split(*parts, ","), *rounds, *idle)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(1)
	}
}

// The programs that only measuring needs.
var (
	emptyProgram   = program.Own("empty", "./cost/empty")
	directProgram  = program.Own("direct", "./cost/direct")
	trivialBackend = program.Own("backends/credential-backend-trivial", "./cost/trivial")
)

// bench is the programs, the cloud, and the order in which they are measured.
type bench struct {
	out   io.Writer
	dir   string
	cloud *remote
	all   []*measured
	// agents are those that run.
	agents []*agentProcess
	// registries counts those that were new.
	registries int
	// parts are the stages of a request within the backend, as the direct program reports them, by identity.
	parts map[string]map[string][]time.Duration
}

func measure(parts []string, rounds int, idle bool) (err error) {
	dir, err := os.MkdirTemp("", "credential-broker-cost-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := program.Build(".", dir, program.Broker, program.ECRBackend, program.GARBackend, program.ACRBackend, program.VaultBackend, program.DockerConfigBackend, program.ExecBackend, program.CloudProviderAWS, program.GCRLogin, emptyProgram, directProgram, azureProgram, vaultProgram, trivialBackend); err != nil {
		return err
	}
	remote, err := startCloud()
	if err != nil {
		return err
	}
	defer func() {
		if closing := remote.close(); err == nil {
			err = closing
		}
	}()
	b := &bench{out: os.Stdout, dir: dir, cloud: remote, parts: map[string]map[string][]time.Duration{}}
	defer func() { err = errors.Join(err, b.endAgents()) }()
	for _, part := range parts {
		switch part {
		case "requests":
			err = b.requests(rounds)
		case "google":
			err = b.google(rounds)
		case "azure":
			err = b.azure(rounds)
		case "vault":
			err = b.vault(rounds)
		case "storm":
			err = b.storm()
		case "memory":
			err = b.memory(idle)
		default:
			err = fmt.Errorf("no part is called %q", part)
		}
		if err == nil {
			err = b.endAgents() // another part has its own, and is to have the machine for itself
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) endAgents() (err error) {
	for _, a := range b.agents {
		err = errors.Join(err, a.close())
	}
	b.agents = nil
	return err
}

// requests measures one request at a time.
func (b *bench) requests(rounds int) error {
	if err := b.things(); err != nil {
		return err
	}
	if err := b.measure(rounds); err != nil {
		return err
	}
	if err := b.sameWork(); err != nil {
		return err
	}
	b.report()
	return b.initialisation(min(rounds, 11))
}

// measure runs everything in turn, round by round.
func (b *bench) measure(rounds int) error {
	for round := range rounds + 2 {
		for _, m := range b.all {
			if err := b.once(m, round >= 2); err != nil { // the first two warm the caches
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	return nil
}

func (b *bench) path(p program.Program) string { return filepath.Join(b.dir, p.File) }

// once runs a thing to its end.
func (b *bench) once(m *measured, counts bool) error {
	if _, err := b.cloud.work(); err != nil {
		return err
	}
	cmd := m.cmd()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%w: %s", err, stderr.String())
	}
	done, err := b.cloud.work()
	if err != nil {
		return err
	}
	if counts && !done.equal(m.work) {
		return fmt.Errorf("the cloud did %v for it, and %v before", done, m.work)
	}
	m.work = done
	if !counts {
		return nil
	}
	m.took = append(m.took, took)
	if m.after != nil {
		return m.after(stdout.Bytes())
	}
	return nil
}

// The names under which results are compared. Those with an identity end in it.
const (
	empty     = "an empty Go program"
	help      = "the official provider's start alone"
	version   = "credential-broker version"
	nobody    = "credential-broker, no provider matches"
	backend   = "the backend's start alone"
	trivial   = "credential-broker, a trivial backend"
	theirs    = "the official provider, "
	ours      = "credential-broker, backend ecr, "
	inProcess = "the backend's work in one process, "
	warm      = "credential-broker, the agent holds the answer, "
	miss      = "credential-broker, the agent asks its backend, "
	absent    = "credential-broker, backend ecr, no agent where one is named, "
)

// start is a program's start and end alone.
func (b *bench) start(name string, p program.Program, args ...string) {
	b.all = append(b.all, &measured{name: name, cmd: func() *exec.Cmd { return exec.Command(b.path(p), args...) }})
}

func (b *bench) things() error {
	b.start(empty, emptyProgram)
	b.start(help, program.CloudProviderAWS, "--help")
	b.start(version, program.Broker, "version")
	b.start(backend, program.ECRBackend, "--version")
	for _, c := range []struct{ name, pattern, image string }{{nobody, "other.invalid", image}, {trivial, host, image}} {
		config, err := b.config(c.pattern, "trivial", false)
		if err != nil {
			return err
		}
		if err := b.whole(c.name, identity{}, program.Broker, "--config", config); err != nil {
			return err
		}
	}
	for _, id := range b.cloud.Identities {
		config, err := b.config(hosts, "ecr", id.Token != "")
		if err != nil {
			return err
		}
		if err := errors.Join(b.whole(theirs+id.Name, id, program.CloudProviderAWS), b.whole(ours+id.Name, id, program.Broker, "--config", config)); err != nil {
			return err
		}
		if err := b.throughAgent(id, config); err != nil {
			return err
		}
		if id.Token != "" {
			continue
		}
		if err := b.whole(inProcess+id.Name, id, directProgram, image); err != nil {
			return err
		}
		parts := map[string][]time.Duration{}
		b.parts[id.Name] = parts
		b.all[len(b.all)-1].after = func(stdout []byte) error {
			var took map[string]time.Duration
			if err := json.Unmarshal(stdout, &took); err != nil {
				return err
			}
			for name, d := range took {
				parts[name] = append(parts[name], d)
			}
			return nil
		}
	}
	return nil
}

// throughAgent adds what there is to measure of an agent of this identity.
func (b *bench) throughAgent(id identity, config string) error {
	agent, err := b.startAgent(id, config)
	if err != nil {
		return err
	}
	if err := b.whole(absent+id.Name, id.asking(filepath.Join(b.dir, "nobody.sock")), program.Broker, "--config", config); err != nil {
		return err
	}
	asking := id.asking(agent.socket)
	if err := b.whole(miss+id.Name, asking, program.Broker, "--config", config); err != nil {
		return err
	}
	b.all[len(b.all)-1].cmd = func() *exec.Cmd {
		cmd, _ := b.command(asking, b.newRegistry()+"/team/app", program.Broker, "--config", config)
		return cmd
	}
	return b.whole(warm+id.Name, asking, program.Broker, "--config", config)
}

// newRegistry is the host of a registry that nobody has been asked about: both the agent and the ECR backend keep a region's token.
func (b *bench) newRegistry() string {
	b.registries++
	return fmt.Sprintf("%s.dkr.ecr.eu-west-%d.amazonaws.com", account, 100+b.registries)
}

// whole is a whole request.
func (b *bench) whole(name string, id identity, p program.Program, args ...string) error {
	_, err := b.command(id, image, p, args...)
	b.all = append(b.all, &measured{name: name, cmd: func() *exec.Cmd {
		cmd, _ := b.command(id, image, p, args...) // which has been made once
		return cmd
	}})
	return err
}

// command is a program that is given the kubelet's request.
func (b *bench) command(id identity, image string, p program.Program, args ...string) (*exec.Cmd, error) {
	request := map[string]any{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": image}
	if id.Token != "" {
		request["serviceAccountToken"], request["serviceAccountAnnotations"] = id.Token, map[string]string{annotation: podRole}
	}
	stdin, err := json.Marshal(request)
	cmd := exec.Command(b.path(p), args...)
	cmd.Env, cmd.Stdin = b.environment(id), bytes.NewReader(stdin)
	return cmd, err
}

func (b *bench) environment(id identity) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "TMPDIR=" + b.dir}, id.Env...)
}

// config writes a broker configuration with one provider.
func (b *bench) config(pattern, backend string, token bool) (string, error) {
	provider := map[string]any{"name": "p", "backend": backend, "matchImages": []string{pattern}, "inheritEnv": []string{"AWS_*"}, "config": map[string]any{}}
	if token {
		provider["tokenAttributes"] = map[string]any{"serviceAccountTokenAudience": audience, "optionalServiceAccountAnnotationKeys": []string{annotation}}
	}
	data, err := json.Marshal(map[string]any{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "providers": []any{provider}})
	if err != nil {
		return "", err
	}
	file := filepath.Join(b.dir, fmt.Sprintf("%s-%s-%t.json", backend, strings.ReplaceAll(pattern, "*", "any"), token))
	return file, os.WriteFile(file, data, 0o600)
}

// sameWork makes sure that the cloud did as much for one as for the other. It was the same in each round already.
func (b *bench) sameWork() error {
	byName := b.byName()
	for _, id := range b.cloud.Identities {
		a, c := byName[theirs+id.Name].work, byName[ours+id.Name].work
		fmt.Fprintf(b.out, "the cloud's work, %s: %v\n", id.Name, a)
		if !a.equal(c) {
			return fmt.Errorf("%s: the cloud's work for the official provider is %v, for the broker %v", id.Name, a, c)
		}
		if c := byName[absent+id.Name].work; !a.equal(c) {
			return fmt.Errorf("%s: the cloud's work for the broker without the agent that is named is %v, want %v", id.Name, c, a)
		}
		fmt.Fprintf(b.out, "  through an agent that holds nothing: %v\n", byName[miss+id.Name].work)
		if c := byName[warm+id.Name].work; !c.equal(work{"TLS connections": 0}) {
			return fmt.Errorf("%s: the cloud's work is %v where the agent holds the answer, want none", id.Name, c)
		}
	}
	fmt.Fprintln(b.out)
	return nil
}

func (b *bench) byName() map[string]*measured {
	byName := make(map[string]*measured)
	for _, m := range b.all {
		byName[m.name] = m
	}
	return byName
}

// table prints what each took.
func (b *bench) table() {
	byName := b.byName()
	fmt.Fprintf(b.out, "%-68s %9s %9s %9s %9s\n", "", "median", "fastest", "slowest", "× empty")
	for _, m := range b.all {
		sorted := slices.Sorted(slices.Values(m.took))
		fmt.Fprintf(b.out, "%-68s %9s %9s %9s %9.2f\n", m.name, ms(median(m.took)), ms(sorted[0]), ms(sorted[len(sorted)-1]), ratio(m, byName[empty]))
	}
	fmt.Fprintln(b.out)
}

// compare prints one thing's ratio to another.
func (b *bench) compare(what, a, c string, goals any) {
	byName := b.byName()
	fmt.Fprintf(b.out, "%-68s %9.2f   %v\n", what, ratio(byName[a], byName[c]), goals)
}

func (b *bench) report() {
	b.table()
	byName := b.byName()
	for _, id := range b.cloud.Identities {
		b.compare("ours × the official provider, "+id.Name, ours+id.Name, theirs+id.Name, coldGoals)
		if byName[inProcess+id.Name] != nil {
			b.compare("  our work in one process × the official provider", inProcess+id.Name, theirs+id.Name, "")
		}
		b.compare("  ours, the agent holds the answer × the official provider", warm+id.Name, theirs+id.Name, warmGoals)
		b.compare("  ours, the agent holds the answer × an empty Go program", warm+id.Name, empty, emptyGoals)
		b.compare("  ours, the agent asks its backend × the official provider", miss+id.Name, theirs+id.Name, "")
		b.compare("  ours, no agent where one is named × ours without one", absent+id.Name, ours+id.Name, "")
	}
	fmt.Fprintln(b.out)
	part := func(what string, d time.Duration) { fmt.Fprintf(b.out, "%-68s %9s\n", what, ms(d)) }
	between := func(what, a, c string) { part(what, difference(byName[a], byName[c])) }
	part("any Go program's start and end", median(byName[empty].took))
	between("the official provider's initialisation and help", help, empty)
	between("the broker's initialisation and command line", version, empty)
	between("reading the request and the configuration", nobody, version)
	between("starting, asking and ending a backend that knows all", trivial, nobody)
	between("the ECR backend's initialisation", backend, empty)
	for _, id := range b.cloud.Identities {
		between("what ECR adds to the broker with a trivial backend, "+id.Name, ours+id.Name, trivial)
		between("the official provider's work after its start, "+id.Name, theirs+id.Name, help)
		between("what looking for an agent that is not there adds, "+id.Name, absent+id.Name, ours+id.Name)
		parts := b.parts[id.Name]
		for _, name := range []string{"all", "configuration", "connection", "TLS handshake", "API call"} {
			if d := parts[name]; len(d) > 0 {
				part("  in one process: "+name, median(d))
			}
		}
	}
}

// difference is the median of what a takes more than c within each round.
func difference(a, c *measured) time.Duration {
	all := make([]time.Duration, len(a.took))
	for i := range a.took {
		all[i] = a.took[i] - c.took[i]
	}
	return median(all)
}

// ratio is the median of the ratios of a and b within each round.
func ratio(a, b *measured) float64 {
	return paired(a.took, b.took)
}

func paired(a, b []time.Duration) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = float64(a[i]) / float64(b[i])
	}
	return median(ratios)
}

func median[T ~int | ~int64 | ~float64](values []T) T {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

var initLine = regexp.MustCompile(`(?m)^init (\S+) @\S+ ms, (\S+) ms clock, (\d+) bytes, (\d+) allocs`)

// initialisation prints what the packages of each program cost before main, by the runtime's own account.
func (b *bench) initialisation(rounds int) error {
	fmt.Fprintln(b.out)
	for _, p := range []struct {
		name string
		program.Program
		args []string
	}{
		{"the official provider", program.CloudProviderAWS, []string{"--help"}},
		{"the broker", program.Broker, []string{"version"}},
		{"a trivial backend", trivialBackend, []string{"--version"}},
		{"the ECR backend", program.ECRBackend, []string{"--version"}},
		{"the Google backend", program.GARBackend, []string{"--version"}},
		{"the Azure backend", program.ACRBackend, []string{"--version"}},
		{"the Vault backend", program.VaultBackend, []string{"--version"}},
	} {
		packages, whole := map[string][]float64{}, []float64{}
		var allocations int
		for range rounds {
			cmd := exec.Command(b.path(p.Program), p.args...)
			cmd.Env = []string{"GODEBUG=inittrace=1", "HOME=" + b.dir}
			var stderr strings.Builder
			cmd.Stderr = &stderr
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			sum := 0.0
			allocations = 0
			for _, line := range initLine.FindAllStringSubmatch(stderr.String(), -1) {
				took, err := strconv.ParseFloat(line[2], 64)
				if err != nil {
					return err
				}
				n, err := strconv.Atoi(line[4])
				if err != nil {
					return err
				}
				sum, allocations = sum+took, allocations+n
				packages[line[1]] = append(packages[line[1]], took)
			}
			whole = append(whole, sum)
		}
		fmt.Fprintf(b.out, "package initialisation of %s: %.2f ms, %d packages, %d allocations; most of it:\n", p.name, median(whole), len(packages), allocations)
		names := make([]string, 0, len(packages))
		for name := range packages {
			names = append(names, name)
		}
		slices.SortFunc(names, func(a, c string) int {
			if d := median(packages[c]) - median(packages[a]); d != 0 {
				return map[bool]int{true: 1, false: -1}[d > 0]
			}
			return strings.Compare(a, c)
		})
		for _, name := range names[:min(len(names), 6)] {
			fmt.Fprintf(b.out, "  %-60s %6.3f ms\n", name, median(packages[name]))
		}
	}
	return nil
}
