// Package exec makes a backend of any existing kubelet credential provider: it sends the provider the request that the kubelet would, and takes the response
// that the kubelet would take. It knows nothing of registries.
package exec

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/child"
	"github.com/credential-broker/credential-broker/backends/internal/redact"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// Config is the provider's `config`.
type Config struct {
	// Command is the provider's absolute path. It and the directories above it may be writable by nobody but root and the broker's user.
	Command string `json:"command"`
	// Args are its arguments.
	Args []string `json:"args"`
	// SHA256 are the digests, in hexadecimal, of the files that may be run; none: any.
	SHA256 []string `json:"sha256"`
	// APIVersion is that of the request and the response: credentialprovider.kubelet.k8s.io/v1 (the default), v1beta1 or v1alpha1. A service account token and
	// annotations are passed on only in v1.
	APIVersion string `json:"apiVersion"`
}

// Provider is the backend. What the wrapped provider sees of the environment is what the backend itself has: what the broker's configuration gives it.
type Provider struct {
	cfg Config
	env []string
}

// New checks the settings, and that the command is there and safe to run. Digests are left to Check and Credentials, since they cost reading the file.
func New(_ context.Context, cfg Config) (*Provider, error) {
	var problems []error
	if cfg.Command == "" {
		problems = append(problems, backends.InvalidConfig("command", "want the absolute path of a credential provider"))
	} else if !filepath.IsAbs(cfg.Command) {
		problems = append(problems, backends.InvalidConfig("command", "want an absolute path, got %q", cfg.Command))
	} else if err := trust.Executable(cfg.Command, nil); err != nil {
		problems = append(problems, notRunnable(err))
	}
	for i, arg := range cfg.Args {
		if strings.IndexByte(arg, 0) >= 0 {
			problems = append(problems, backends.InvalidConfig(fmt.Sprintf("args[%d]", i), "has a zero byte, which no program can be given"))
		}
	}
	for i, digest := range cfg.SHA256 {
		if raw, err := hex.DecodeString(digest); err != nil || len(raw) != 32 {
			problems = append(problems, backends.InvalidConfig(fmt.Sprintf("sha256[%d]", i), "want a SHA-256 digest: 64 hexadecimal digits, as sha256sum prints them"))
		}
	}
	switch cfg.APIVersion {
	case "":
		cfg.APIVersion = v1
	case v1, v1beta1, v1alpha1:
	default:
		problems = append(problems, backends.InvalidConfig("apiVersion", "want %s, %s or %s", v1, v1beta1, v1alpha1))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return &Provider{cfg: cfg, env: os.Environ()}, nil
}

func notRunnable(err error) error { return backends.InvalidConfig("command", "%w", err) }

// runnable judges the command anew, digest included.
func (p *Provider) runnable() error {
	if err := trust.Executable(p.cfg.Command, p.cfg.SHA256); err != nil {
		return notRunnable(err)
	}
	return nil
}

// Check says whether the command could be run. It is not run: only a pull's request has what it wants to know.
func (p *Provider) Check(context.Context, backends.Request) error { return p.runnable() }

// Credentials runs the provider for one image.
func (p *Provider) Credentials(ctx context.Context, req backends.Request) (backends.Response, error) {
	if err := p.runnable(); err != nil {
		return backends.Response{}, err
	}
	request, err := encodeRequest(p.cfg.APIVersion, req)
	if err != nil {
		return backends.Response{}, err
	}
	result, err := child.Run(ctx, child.Command{
		Path:      p.cfg.Command,
		Args:      p.cfg.Args,
		Env:       p.env,
		Stdin:     request,
		MaxStdout: backendv1.MaxMessageBytes,
	})
	if _, ok := errors.AsType[*child.StartError](err); ok {
		return backends.Response{}, notRunnable(err)
	}
	response, invalid := decodeResponse(p.cfg.APIVersion, result.Stdout)
	stderr := lastWords(result, response, invalid == nil, req)
	if err == nil {
		err = invalid
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("it did not answer in time and was killed")
		} else if errors.Is(err, context.Canceled) {
			err = errors.New("it was killed, since its answer is no longer wanted")
		}
		if stderr != "" {
			return backends.Response{}, backends.Unavailable(fmt.Errorf("run %s for image %s: %w; the end of its standard error: %s", p.cfg.Command, req.Image, err, stderr))
		}
		return backends.Response{}, backends.Unavailable(fmt.Errorf("run %s for image %s: %w", p.cfg.Command, req.Image, err))
	}
	if stderr != "" {
		slog.DebugContext(ctx, "the provider succeeded and wrote to standard error", "command", p.cfg.Command, "image", string(req.Image), "stderr", stderr)
	}
	return response.answer(), nil
}

// Bounds on what is shown of a provider's standard error.
const (
	maxLines = 8
	maxWords = 1 << 10 // bytes
)

// lastWords are the last lines of what the provider wrote to standard error, on one line, without anything that its response holds or that the request handed it in
// confidence. Of what it printed on standard output and is no valid response every word counts as a secret, since nobody can tell.
func lastWords(result child.Result, response wireResponse, valid bool, req backends.Request) string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(result.Stderr), "\uFFFD"))
	if text == "" {
		return ""
	}
	var hidden redact.Set
	hidden.Add(string(req.Token))
	if valid {
		for _, auth := range response.Auth {
			hidden.AddPair(auth.Username, auth.Password)
		}
	} else if !suspect(result.Stdout, &hidden) {
		return "(not shown, since there is too much on its standard output that could be secret)"
	}
	lines := strings.Split(hidden.Text(text), "\n")
	lines = lines[max(0, len(lines)-maxLines):]
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.Join(slices.DeleteFunc(lines, func(l string) bool { return l == "" }), "; "))
	if cut := len(text) - maxWords; cut > 0 {
		text = "…" + strings.ToValidUTF8(text[cut:], "")
	}
	return text
}

// maxSuspects bounds the work on what is no response.
const maxSuspects = 2000

// suspect adds what could be a secret in data that is no valid response: every string where it is JSON of whatever shape, what stands between quotes, and every long
// word. It says whether that was all there is.
func suspect(data []byte, hidden *redact.Set) (all bool) {
	seen := map[string]bool{}
	add := func(s string) {
		if !harmless[s] && len(seen) <= maxSuspects && !seen[s] {
			seen[s] = true
			hidden.Add(s)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	for last, username := "", ""; ; {
		token, err := dec.Token()
		if err != nil {
			break
		}
		s, ok := token.(string)
		if !ok {
			continue
		}
		add(s)
		switch last {
		case "username":
			username = s
		case "password":
			hidden.AddPair(username, s)
		}
		last = s
	}
	for s := range bytes.SplitSeq(data, []byte{'"'}) {
		add(string(s))
	}
	for word := range bytes.FieldsSeq(data) {
		if len(word) < 6 {
			continue
		}
		add(string(word))
		for s := range bytes.FieldsFuncSeq(word, func(r rune) bool { return strings.ContainsRune(`"'{}[],`, r) }) {
			if len(s) >= 8 {
				add(string(s))
			}
		}
	}
	return len(seen) <= maxSuspects
}

// harmless are the words of a response that are no secret. They are common in error messages.
var harmless = map[string]bool{
	"apiVersion": true, "kind": true, "cacheKeyType": true, "cacheDuration": true, "auth": true, "username": true, "password": true,
	"CredentialProviderResponse": true, "Image": true, "Registry": true, "Global": true, v1: true, v1beta1: true, v1alpha1: true,
}
