// Package doctor judges a node: what could keep a pull from its credentials, from the kubelet's flags to each backend's own check, in the order in which to mend it. It reads the node's
// files and processes through Node, and has the running program do what starts processes or talks to somebody through Program; it changes nothing, and prints nothing that is secret: of
// an environment it tells the names. It does not know how findings are shown.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// Verdict is what a finding amounts to.
type Verdict string

// The verdicts, the worst first.
const (
	Wrong   Verdict = "WRONG"
	Unknown Verdict = "unknown" // could not be looked at
	Noted   Verdict = "note"    // works, and should be known
	OK      Verdict = "ok"
)

// Finding is what came of one look.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	// What was looked at, as in "kubelet flags".
	What string `json:"what"`
	// Text says what was found there.
	Text string `json:"text"`
	// Remedy is the command to run, or what to do instead.
	Remedy string `json:"remedy,omitempty"`
	// WaitsFor is the finding to mend first, where this was not looked at because of it.
	WaitsFor string `json:"waitsFor,omitempty"`
}

// Program is what only the running program can do. Environ is the environment that a backend's is taken from.
type Program interface {
	// KubeletVersion runs the file with --version and gives what it prints.
	KubeletVersion(ctx context.Context, path string) (string, error)
	// Agent asks the agent on this socket what it is.
	Agent(socket string) Agent
	// Listens says whether somebody listens at an address of agent.metrics.
	Listens(ctx context.Context, address string) error
	// Find gives the file of a backend.
	Find(dir, backend string) (string, error)
	// Describe starts a backend and gives its version.
	Describe(ctx context.Context, path string) (version string, err error)
	// Settings has a provider's backend judge its settings, without the network.
	Settings(ctx context.Context, cfg *config.Config, p *config.Provider, environ []string) []error
	// Check has a provider's backend find out whether it can do its job for the image; not supported: it has no check.
	Check(ctx context.Context, cfg *config.Config, p *config.Provider, image string, environ []string) (supported bool, err error)
	// Inherited gives what a provider's backend takes of the environment, settings of its own aside.
	Inherited(environ []string, p *config.Provider) []string
}

// Agent is what an agent said of itself.
type Agent struct {
	// Reason is why it did not answer. Absent: nobody is there.
	Reason string
	Absent bool

	Version string
	PID     int
	// Refused are the configurations on disk that it does not use, because they are broken.
	Refused []string
	// Unlocked is how many secrets lie in memory that may be swapped out.
	Unlocked int
}

// Options say what to examine.
type Options struct {
	Node    Node
	Program Program
	// Mounted says that the node is not the one that this program runs on: nothing of it is started, or asked.
	Mounted bool
	// Self is the real file of the running program, Version its version; of a node that is mounted they tell nothing.
	Self, Version string
	// Config, BackendDir and Socket are what the operator named; empty: what the kubelet's entry names, else the default. SocketGiven tells an empty Socket from none.
	Config, BackendDir, Socket string
	SocketGiven                bool
	// Places are where the configuration is when nobody names one.
	Places config.Places
	// PID chooses among kubelets; 0: the one that was started first.
	PID int
	// KubeletVersion is said instead of asked.
	KubeletVersion string
	// Image is what backends check themselves with; empty: something under a pattern without wildcards.
	Image string
	// Offline: no backend's check.
	Offline bool
	// UID is the user who looks; negative where users have no numbers.
	UID int
}

// The names of what is looked at; a finding that waits for another names it so.
const (
	whatKubelet    = "kubelet"
	whatFlags      = "kubelet flags"
	whatVersion    = "kubelet version"
	whatKubeConfig = "kubelet's credential provider configuration"
	whatBinDir     = "kubelet's bin directory"
	whatEntry      = "kubelet's entry"
	whatOthers     = "other entries"
	whatConfig     = "configuration"
	whatProgram    = "program"
	whatTokens     = "service account tokens"
	whatRestart    = "kubelet restart"
	whatBackend    = "backend"
	whatRuntime    = "room to work in"
	whatAgent      = "agent"
	whatEnviron    = "environment"
	whatLog        = "log"
	whatCheck      = "check"
)

// examination is one look at a node. What a step learns the later ones use; where it could learn nothing they wait for it.
type examination struct {
	Options
	findings []Finding

	kubelet      *Process // nil: it does not run, or cannot be seen
	noneRuns     bool     // no kubelet does
	installed    bool     // the DaemonSet keeps the entries
	settings     flagFiles
	flags        flags
	version      string
	ours, others []kubelet.CredentialProvider
	all          *kubelet.CredentialProviderConfig
	wanted       []kubelet.Entry // what would be printed now
	entrySocket  string          // the agent's, where an entry alone names it
	cfg          *config.Config
	cfgPaths     []string
	backendDir   string
	// ownBackendDir is the configuration's, whatever overrides it.
	ownBackendDir string
	agent         *Agent
	files         map[string]string // of sound backends, by provider
}

// Examine looks at everything, and gives what it found in the order in which to mend it.
func Examine(ctx context.Context, o Options) []Finding {
	e := &examination{Options: o, files: map[string]string{}}
	e.findKubelet()
	e.findFlags()
	e.installed = e.isInstalled()
	e.findVersion(ctx)
	e.readKubeletConfig()
	e.lookAtBinDir()
	e.findConfiguration()
	e.lookAtPrograms()
	e.lookAtTokens()
	e.compareEntries()
	e.lookAtOthers()
	e.lookAtRestart()
	e.lookAtBackends(ctx)
	e.lookAtRuntime()
	e.lookAtAgent(ctx)
	e.compareEnvirons()
	e.lookAtLog()
	e.check(ctx)
	return e.findings
}

// Problems is how many of the findings are to be mended.
func Problems(findings []Finding) (n int) {
	for _, f := range findings {
		if f.Verdict == Wrong {
			n++
		}
	}
	return n
}

// WorstFirst puts what is to be mended first, and what is well last; among equals the order stays.
func WorstFirst(findings []Finding) []Finding {
	order := []Verdict{Wrong, Unknown, Noted, OK}
	sorted := slices.Clone(findings)
	slices.SortStableFunc(sorted, func(a, b Finding) int { return slices.Index(order, a.Verdict) - slices.Index(order, b.Verdict) })
	return sorted
}

func (e *examination) add(f Finding) {
	e.findings = append(e.findings, f)
}

func (e *examination) ok(what, format string, args ...any) {
	e.add(Finding{Verdict: OK, What: what, Text: fmt.Sprintf(format, args...)})
}

func (e *examination) note(what, remedy, format string, args ...any) {
	e.add(Finding{Verdict: Noted, What: what, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (e *examination) wrong(what, remedy, format string, args ...any) {
	e.add(Finding{Verdict: Wrong, What: what, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (e *examination) unknown(what, remedy, format string, args ...any) {
	e.add(Finding{Verdict: Unknown, What: what, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// waits says that what was not looked at, since the first has to be mended before.
func (e *examination) waits(what, first string) {
	e.add(Finding{Verdict: Unknown, What: what, Text: "not looked at: first mend: " + first, WaitsFor: first})
}

// isWrong says whether something is wrong with what.
func (e *examination) isWrong(what string) bool {
	return slices.ContainsFunc(e.findings, func(f Finding) bool { return f.Verdict == Wrong && f.What == what })
}

// failure says in one line that something cannot be used; a *trust.Error has the command to run at its end, which is taken for the remedy.
func (e *examination) failure(what, otherwise string, err error) {
	text, remedy := e.Node.split(err, otherwise)
	e.wrong(what, remedy, "%s", text)
}

// oneLine is an error's text without line breaks, with the node's own paths.
func (n Node) oneLine(err error) string { return n.reword(strings.ReplaceAll(err.Error(), "\n", "; ")) }

// stepTimeout bounds a step that starts a process and needs no network.
const stepTimeout = 10 * time.Second
