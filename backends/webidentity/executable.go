package webidentity

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/child"
	"github.com/credential-broker/credential-broker/backends/internal/redact"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// executableTimeout is how long a program may run unless its settings say so.
const executableTimeout = 10 * time.Second

// executable is a program that prints the token.
type executable struct {
	Executable
	env   []string
	judge judge
}

func newExecutable(c Executable, j judge) *executable {
	e := &executable{Executable: c, judge: j}
	for name, value := range c.Env {
		e.env = append(e.env, name+"="+string(value))
	}
	slices.Sort(e.env)
	if e.Timeout == 0 {
		e.Timeout = executableTimeout
	}
	return e
}

func (e *executable) String() string { return "program " + e.Command }

var errTooSlow = errors.New("it did not end in time and was killed")

// Token runs the program, whose file passes the same checks as a backend's, anew each time.
func (e *executable) Token(ctx context.Context) (Token, error) {
	if err := trust.Executable(e.Command, e.SHA256); err != nil {
		return Token{}, e.judge.misconfigured(".command", e.String(), "%w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.Timeout, errTooSlow)
	defer cancel()
	result, err := child.Run(ctx, child.Command{Path: e.Command, Args: e.Args, Env: e.env, MaxStdout: maxToken})
	if err != nil {
		if _, ok := errors.AsType[*child.StartError](err); ok {
			return Token{}, e.judge.misconfigured(".command", e.String(), "%w", err)
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			err = ended(ctx)
		}
		if words := e.lastWords(result); words != "" {
			return Token{}, problem(backends.Unavailable, e.String(), "%w; the end of its standard error: %s", err, words)
		}
		return Token{}, problem(backends.Unavailable, e.String(), "%w", err)
	}
	raw := string(result.Stdout)
	if e.TokenField != "" {
		token, found := tokenIn(result.Stdout, e.TokenField)
		if !found {
			return Token{}, e.judge.misconfigured(".tokenField", e.String(), "what it prints is no JSON with a string in field %q", e.TokenField)
		}
		raw = token
	}
	return e.judge.token(raw, e.String())
}

// lastWords are the last lines of standard error, on one line, without what the program was given or printed in confidence.
func (e *executable) lastWords(result child.Result) string {
	const lines, words = 4, 512 // bytes
	if len(result.Stdout) > 8<<10 {
		return "" // too much that could be secret
	}
	var hidden redact.Set
	for _, value := range e.Env {
		hidden.Add(string(value))
	}
	for word := range strings.FieldsFuncSeq(string(result.Stdout), func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`"'{}[],:=`, r) }) {
		hidden.Add(word)
	}
	text := hidden.Text(strings.ToValidUTF8(string(result.Stderr), "\uFFFD"))
	// Programs that trace themselves show tokens that they never print.
	text = regexp.MustCompile(`eyJ[A-Za-z0-9_.-]{8,}`).ReplaceAllLiteralString(text, "[redacted]")
	var kept []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			kept = append(kept, line)
		}
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.Join(kept[max(0, len(kept)-lines):], "; "))
	if cut := len(text) - words; cut > 0 {
		text = "…" + strings.ToValidUTF8(text[cut:], "")
	}
	return text
}
