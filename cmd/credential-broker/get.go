package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// got is what `get -o json` prints.
type got struct {
	Image     string        `json:"image"`
	Error     string        `json:"error,omitempty"`
	Response  *gotResponse  `json:"response,omitempty"`
	Providers []gotProvider `json:"providers"`
	Notes     []gotNote     `json:"notes,omitempty"`
	// Agent is the version of the agent that answered, empty where the work was done here.
	Agent  string  `json:"agent,omitempty"`
	TookMS float64 `json:"tookMs"`
}

type gotResponse struct {
	CacheKeyType  string    `json:"cacheKeyType"`
	CacheDuration string    `json:"cacheDuration"`
	Auth          []gotAuth `json:"auth"`
}

type gotAuth struct {
	Key      string `json:"key"`
	Username string `json:"username"`
	// Password is a mask unless --show-secrets.
	Password string `json:"password"`
	Provider string `json:"provider"`
}

type gotProvider struct {
	Name        string          `json:"name"`
	Backend     string          `json:"backend"`
	AskedFor    string          `json:"askedFor,omitempty"`
	PassedOver  string          `json:"passedOver,omitempty"`
	Error       string          `json:"error,omitempty"`
	ErrorKind   string          `json:"errorKind,omitempty"`
	Scope       string          `json:"scope,omitempty"`
	Credentials []gotCredential `json:"credentials,omitempty"`
	// Check is the backend's own: "ok", what is wrong, or empty if it cannot check itself.
	Check string `json:"check,omitempty"`
	// Asked says that the provider took part; Held that the agent had its answer in memory.
	Asked   bool      `json:"asked"`
	Held    bool      `json:"held,omitempty"`
	TookMS  float64   `json:"tookMs"`
	Parts   []gotPart `json:"parts,omitempty"`
	checked bool
}

type gotCredential struct {
	Key      string     `json:"key"`
	Username string     `json:"username"`
	Expires  *time.Time `json:"expires,omitempty"`
}

type gotPart struct {
	Name    string  `json:"name"`
	StartMS float64 `json:"startMs"`
	TookMS  float64 `json:"tookMs"`
}

type gotNote struct {
	Provider string `json:"provider,omitempty"`
	Text     string `json:"text"`
	Warning  bool   `json:"warning"`
}

func getCommand(opts *options) *cobra.Command {
	var (
		output      outputFormat
		showSecrets bool
		noAgent     bool
		requestFile string
	)
	cmd := &cobra.Command{
		Use:   "get IMAGE",
		Short: "Ask for an image's credentials and show each provider's part, time and expiry",
		Long: `Ask for an image's credentials, as the kubelet would, and show each provider's part, time and expiry, and what each backend's own check says.
Passwords are masked unless --show-secrets. The exit status is 1 if the kubelet would have got an error.`,
		Example: `  credential-broker get registry.example/team/app
  credential-broker get --request request.json -o json     # a CredentialProviderRequest with token and annotations`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request, err := requestToGet(cmd.InOrStdin(), args, requestFile)
			if err != nil {
				return err
			}
			cfg, err := opts.load()
			if err != nil {
				return err
			}
			quiet := cfg.Log
			quiet.Level, quiet.File = "error", "" // what would be logged is shown
			log, closeLog := newLog(quiet, cmd.ErrOrStderr(), false)
			defer closeLog()
			caller := newCaller(cfg, log, false)
			defer func() { _ = caller.Close() }()

			providers := opts.providers(cmd, cfg, noteOn(cmd))
			shown, err := opts.getFromAgent(cmd, cfg, request, showSecrets, noAgent)
			if err != nil {
				return err
			}
			if shown == nil {
				result, failure := broker.New(cfg, providers, caller, log).Resolve(cmd.Context(), request)
				shown = new(describe(request, result, failure, showSecrets))
			}
			heard := &listener{}
			asking := newCaller(cfg, slog.New(listening{to: heard}), false)
			check(cmd.Context(), asking, request, broker.Route(providers, request), shown.Providers)
			_ = asking.Close() // after which all that the backends said has been heard
			shown.Notes = append(shown.Notes, heard.inOrder(shown.Providers)...)
			if output.json() {
				if err := printJSON(cmd, shown); err != nil {
					return err
				}
			} else {
				printGot(newScreen(cmd), *shown)
			}
			if shown.Error != "" {
				return errSilent
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&noAgent, "no-agent", false, "do the work here, even if there is an agent")
	cmd.Flags().BoolVar(&showSecrets, "show-secrets", false, "print passwords")
	cmd.Flags().StringVar(&requestFile, "request", "", `file with a CredentialProviderRequest, "-" for standard input, instead of IMAGE`)
	opts.registerAudience(cmd)
	output.register(cmd)
	return cmd
}

// requestToGet is the request that the arguments describe.
func requestToGet(stdin io.Reader, args []string, file string) (broker.Request, error) {
	switch {
	case len(args) == 1 && file == "":
		name, err := imageArgument(args[0])
		return broker.Request{Image: name}, err
	case len(args) == 1:
		return broker.Request{}, errors.New("give an IMAGE or --request, not both")
	case file == "":
		return broker.Request{}, errors.New("give an IMAGE, as in: credential-broker get registry.example/team/app")
	}
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return broker.Request{}, err
		}
		defer func() { _ = opened.Close() }()
		stdin = opened
	}
	data, err := io.ReadAll(io.LimitReader(stdin, kubelet.MaxRequestSize+1))
	if err != nil {
		return broker.Request{}, fmt.Errorf("reading the request: %w", err)
	}
	request, _, err := kubelet.ReadRequest(data)
	return request, err
}

func describe(request broker.Request, result broker.Result, failure error, showSecrets bool) got {
	shown := got{Image: request.Image, Providers: []gotProvider{}, TookMS: ms(result.Took)}
	for _, d := range result.Routing.Decisions {
		if d.PassedOver != "" {
			shown.Providers = append(shown.Providers, gotProvider{Name: d.Provider.Name, Backend: d.Provider.Backend, PassedOver: d.PassedOver})
		}
	}
	for _, slot := range result.Slots {
		shown.Providers = append(shown.Providers, describeSlot(slot))
	}
	slices.SortStableFunc(shown.Providers, func(a, b gotProvider) int { return rankOf(result, a.Name) - rankOf(result, b.Name) })
	for _, note := range result.Notes {
		shown.Notes = append(shown.Notes, gotNote{note.Provider, note.Text, note.Warning})
	}
	if failure != nil {
		shown.Error = failure.Error()
		return shown
	}
	response := gotResponse{CacheKeyType: string(result.Response.CacheKeyType), CacheDuration: result.Response.CacheDuration.String(), Auth: []gotAuth{}}
	for _, entry := range result.Response.Auth {
		password := entry.Password.String() // the mask
		if showSecrets {
			password = string(entry.Password)
		}
		response.Auth = append(response.Auth, gotAuth{entry.Key, entry.Username, password, entry.Provider})
	}
	shown.Response = &response
	return shown
}

func rankOf(result broker.Result, provider string) int {
	return slices.IndexFunc(result.Routing.Decisions, func(d broker.Decision) bool { return d.Provider.Name == provider })
}

func describeSlot(slot broker.Slot) gotProvider {
	p := gotProvider{Name: slot.Provider.Name, Backend: slot.Provider.Backend, TookMS: ms(slot.Took), Asked: true, Held: slot.Answer.Held && slot.Err == nil}
	if slot.Mirror != nil {
		p.AskedFor = slot.Image
	}
	for _, part := range slot.Answer.Parts {
		p.Parts = append(p.Parts, gotPart{part.Name, ms(part.Start), ms(part.Took)})
	}
	if slot.Err != nil {
		p.Error, p.ErrorKind = slot.Err.Error(), broker.KindOf(slot.Err).String()
		return p
	}
	p.Scope = "image"
	if slot.Answer.RegistryWide {
		p.Scope = "registry"
	}
	for _, c := range slot.Answer.Credentials {
		credential := gotCredential{Key: c.Key, Username: c.Username}
		if !c.Expires.IsZero() {
			credential.Expires = &c.Expires
		}
		p.Credentials = append(p.Credentials, credential)
	}
	return p
}

// checker is what get needs of the caller besides asking.
type checker interface {
	// Check asks the provider's backend whether it could do its job; false if the backend has no check.
	Check(ctx context.Context, provider *config.Provider, request broker.Request) (supported bool, err error)
}

// check runs each asked backend's own check, all at once.
func check(ctx context.Context, c checker, request broker.Request, routing broker.Routing, providers []gotProvider) {
	var waiting sync.WaitGroup
	for _, d := range routing.Asked() {
		i := slices.IndexFunc(providers, func(p gotProvider) bool { return p.Asked && p.Name == d.Provider.Name })
		if i < 0 {
			continue // the agent has another configuration: the one before, if this one is broken
		}
		p := &providers[i]
		waiting.Go(func() {
			mine, err := broker.RequestFor(d, request)
			if err != nil {
				p.Check = err.Error()
				return
			}
			ctx, cancel := context.WithTimeout(ctx, d.Provider.Timeout)
			defer cancel()
			supported, err := c.Check(ctx, d.Provider, mine)
			switch {
			case err != nil:
				p.Check = err.Error()
			case supported:
				p.Check, p.checked = "ok", true
			}
		})
	}
	waiting.Wait()
}

// listener gathers what backends log during their checks: who asks, say, or what they found besides a problem.
type listener struct {
	mu    sync.Mutex
	notes []gotNote
}

// inOrder are the notes, those of each provider together.
func (l *listener) inOrder(providers []gotProvider) []gotNote {
	l.mu.Lock()
	defer l.mu.Unlock()
	rank := func(n gotNote) int {
		return slices.IndexFunc(providers, func(p gotProvider) bool { return p.Name == n.Provider })
	}
	slices.SortStableFunc(l.notes, func(a, b gotNote) int { return rank(a) - rank(b) })
	return l.notes
}

// listening is the log in which the host writes that, with all secrets taken out.
type listening struct {
	to       *listener
	provider string
}

// Enabled implements slog.Handler.
func (l listening) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// WithGroup implements slog.Handler.
func (l listening) WithGroup(string) slog.Handler { return l }

// WithAttrs implements slog.Handler.
func (l listening) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "provider" {
			l.provider = a.Value.String()
		}
	}
	return l
}

// Handle implements slog.Handler. What the host says for itself has no stream.
func (l listening) Handle(_ context.Context, r slog.Record) error {
	said, details := false, []string{}
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "stream":
			said = true
		case "said":
			for _, detail := range a.Value.Group() {
				details = append(details, detail.Key+": "+detail.Value.String())
			}
		}
		return true
	})
	if !said {
		return nil
	}
	text := r.Message
	if len(details) > 0 {
		text += " (" + strings.Join(details, ", ") + ")"
	}
	l.to.mu.Lock()
	defer l.to.mu.Unlock()
	l.to.notes = append(l.to.notes, gotNote{l.provider, text, r.Level >= slog.LevelWarn})
	return nil
}

// getFromAgent lets the agent resolve the request; nil where there is none, or none is wanted.
func (o *options) getFromAgent(cmd *cobra.Command, cfg *config.Config, request broker.Request, showSecrets, noAgent bool) (*got, error) {
	if noAgent || cfg.Agent.Socket == "" {
		return nil, nil
	}
	document, err := kubelet.WriteRequest(request)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(agent.GetRequest{Request: document, ShowSecrets: showSecrets})
	if err != nil {
		return nil, err
	}
	asked, err := o.agentRequest(cmd, fast.Get, body)
	if err != nil {
		return nil, err
	}
	reply, reason, _ := fast.Ask(cfg.Agent.Socket, asked)
	if reason != "" {
		noteOn(cmd)("the agent was not used: " + reason)
		return nil, nil
	}
	if reply.Status != 0 {
		return nil, errors.New(strings.TrimSuffix(strings.TrimPrefix(string(reply.Stderr), "credential-broker: "), "\n"))
	}
	var shown got
	if err := json.Unmarshal(reply.Stdout, &shown); err != nil {
		return nil, fmt.Errorf("the agent answered what this version cannot read: %w: try --no-agent", err)
	}
	return &shown, nil
}

// describeAsJSON is what the agent sends to getFromAgent.
func describeAsJSON(request broker.Request, result broker.Result, failure error, showSecrets bool) ([]byte, error) {
	shown := describe(request, result, failure, showSecrets)
	shown.Agent = version
	return json.Marshal(shown)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func fromMS(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

func printGot(s screen, shown got) {
	s.printf("%s", s.paint(bold, shown.Image))
	if shown.Agent != "" {
		s.printf(" (answered by the agent)")
	}
	s.printf("\n")
	if len(shown.Providers) == 0 {
		s.printf("\nNo provider matches; `credential-broker explain %s` says why. The kubelet pulls without credentials from here.\n", shown.Image)
		return
	}
	printProviders(s, shown.Providers)
	printTimes(s, shown)
	for _, note := range shown.Notes {
		text := note.Text
		if note.Provider != "" {
			text = note.Provider + ": " + text
		}
		st := dim
		if note.Warning {
			st = yellow
		}
		s.printf("%s\n", s.paint(st, "note: "+printable(text)))
	}
	if len(shown.Notes) > 0 {
		s.printf("\n")
	}
	if shown.Error != "" {
		s.printf("%s\nThe kubelet gets an error, logs it, and pulls without credentials from here:\n", s.paint(red, "failed"))
		for line := range strings.Lines(shown.Error) {
			s.printf("  %s\n", printable(strings.TrimSuffix(line, "\n")))
		}
		return
	}
	printResponse(s, *shown.Response)
}

func printProviders(s screen, providers []gotProvider) {
	var rows [][]cell
	for _, p := range providers {
		var answer cell
		checked := cell{p.Check, yellow}
		if p.checked {
			checked.style = green
		}
		if p.Check == "" {
			checked = cell{"-", dim}
		}
		switch {
		case p.PassedOver != "":
			answer = cell{"passed over: " + p.PassedOver, yellow}
		case p.Error != "":
			answer = cell{p.ErrorKind + ": " + strings.ReplaceAll(p.Error, "\n", "; "), red}
			if p.Check == p.Error {
				checked = cell{"the same", yellow}
			}
		case len(p.Credentials) == 0:
			answer = cell{"none for this image", yellow}
		default:
			answer = cell{fmt.Sprintf("%d %s, valid for the %s", len(p.Credentials), plural("credential", len(p.Credentials)), p.Scope), green}
		}
		if p.Held {
			answer.text += " (from memory)"
		}
		rows = append(rows, []cell{{p.Name, plain}, {p.Backend, plain}, {expiry(p.Credentials), plain}, checked, answer})
	}
	s.printf("\n")
	s.table([]string{"PROVIDER", "BACKEND", "EXPIRES", "CHECK", "ANSWER"}, rows)
	s.printf("\n")
}

func plural(noun string, n int) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// expiry is the soonest expiry of the credentials, for people.
func expiry(credentials []gotCredential) string {
	var soonest *time.Time
	for _, c := range credentials {
		if c.Expires != nil && (soonest == nil || c.Expires.Before(*soonest)) {
			soonest = c.Expires
		}
	}
	if soonest == nil {
		return "-"
	}
	left := time.Until(*soonest).Round(time.Second)
	if left <= 0 {
		return "expired"
	}
	return "in " + left.String()
}

// printTimes draws what took how long, so that the slow provider is seen, not searched.
func printTimes(s screen, shown got) {
	whole := fromMS(shown.TookMS)
	var rows [][]cell
	for _, p := range shown.Providers {
		if !p.Asked {
			continue
		}
		took := fromMS(p.TookMS)
		rows = append(rows, []cell{{p.Name, bold}, {milliseconds(took), bold}, {bar(0, took, whole), plain}})
		for _, part := range p.Parts {
			rows = append(rows, []cell{{"  " + part.Name, dim}, {milliseconds(fromMS(part.TookMS)), dim}, {bar(fromMS(part.StartMS), fromMS(part.TookMS), whole), dim}})
		}
	}
	rows = append(rows, []cell{{"all", bold}, {milliseconds(whole), bold}, {bar(0, whole, whole), plain}})
	s.table([]string{"TIME", "", ""}, rows)
	s.printf("\n")
}

func printResponse(s screen, response gotResponse) {
	if len(response.Auth) == 0 {
		s.printf("No credentials: the kubelet pulls without any from here.\n")
	} else {
		var rows [][]cell
		for _, entry := range response.Auth {
			rows = append(rows, []cell{{entry.Key, bold}, {entry.Username, plain}, {entry.Password, dim}, {entry.Provider, plain}})
		}
		s.table([]string{"AUTH KEY", "USERNAME", "PASSWORD", "FROM PROVIDER"}, rows)
	}
	switch {
	case response.CacheDuration == "0s":
		s.printf("\nNot cached: the kubelet asks again at the next pull.\n")
	case response.CacheKeyType == string(broker.CacheRegistry):
		s.printf("\nThe kubelet uses this answer for %s, for every image of the registry.\n", response.CacheDuration)
	default:
		s.printf("\nThe kubelet uses this answer for %s, for this image alone.\n", response.CacheDuration)
	}
}
