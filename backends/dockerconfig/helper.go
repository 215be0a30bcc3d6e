package dockerconfig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/child"
	"github.com/credential-broker/credential-broker/backends/internal/redact"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// tokenUser is the user name under which helpers give an identity token.
const tokenUser = "<token>"

// findHelper looks a helper up in PATH and makes sure that nobody else could have put it there.
func findHelper(suffix string) (path string, err error) {
	name := "docker-credential-" + suffix
	if strings.ContainsAny(suffix, `/\`) {
		return "", fmt.Errorf("%q is no name of a helper: want what follows docker-credential- in the program's name", suffix)
	}
	path, err = osexec.LookPath(name)
	if err == nil && !filepath.IsAbs(path) {
		err = osexec.ErrDot
	}
	if err != nil {
		return "", fmt.Errorf("the helper %s is not in PATH (%s): install it, or add its directory to the provider's env", name, os.Getenv("PATH"))
	}
	return path, trust.Executable(path, nil)
}

// ask asks a helper for a host's user name and password. Found is false if it has none, which is not a failure. Helpers speak docker's protocol: the server on
// standard input, JSON or a known message on standard output.
func ask(ctx context.Context, path, server string) (username, password string, found bool, err error) {
	p := &program{ctx: ctx, path: path}
	got, err := client.Get(func(args ...string) client.Program { p.args = args; return p }, server)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return "", "", false, nil
	case p.err != nil:
		if _, ok := errors.AsType[*child.StartError](p.err); ok {
			return "", "", false, backends.InvalidConfig("file", "%w", p.err)
		}
		return "", "", false, backends.Unavailable(fmt.Errorf("ask %s for %s: %w%s", path, server, p.reason(), p.lastWords()))
	case err != nil:
		// The library's error quotes what was printed, which is the secret.
		return "", "", false, backends.Unavailable(fmt.Errorf("ask %s for %s: what it printed is no credential%s", path, server, p.lastWords()))
	case got.Username == tokenUser:
		return "", "", false, backends.InvalidConfig("file", "%s has an identity token for %s, which the kubelet cannot be given: log in with a password or an access token instead", path, server)
	}
	return got.Username, got.Secret, got.Username != "" || got.Secret != "", nil
}

// program runs a helper the way package child does.
type program struct {
	ctx    context.Context
	path   string
	args   []string
	stdin  []byte
	result child.Result
	err    error
}

func (p *program) Input(in io.Reader) { p.stdin, _ = io.ReadAll(in) }

func (p *program) Output() ([]byte, error) {
	p.result, p.err = child.Run(p.ctx, child.Command{Path: p.path, Args: p.args, Env: os.Environ(), Stdin: p.stdin})
	return p.result.Stdout, p.err
}

func (p *program) reason() error {
	switch {
	case errors.Is(p.err, context.DeadlineExceeded):
		return errors.New("it did not answer in time and was killed")
	case errors.Is(p.err, context.Canceled):
		return errors.New("it was killed, since its answer is no longer wanted")
	}
	return p.err
}

// lastWords is the end of the helper's standard error, without any word that it printed on standard output too, and what to do in any case: a helper
// explains itself on standard output, which is where secrets are, so that it is not shown.
func (p *program) lastWords() string {
	const most = 512
	advice := "; to see what it says: echo SERVER | " + filepath.Base(p.path) + " get"
	if len(p.result.Stdout) > 16<<10 {
		return advice // too many words to look for
	}
	var hidden redact.Set
	var login credentials.Credentials
	if json.Unmarshal(p.result.Stdout, &login) == nil { // the secret as it is, which need not be a word of the JSON
		hidden.AddPair(login.Username, login.Secret)
	}
	for _, word := range strings.FieldsFunc(string(p.result.Stdout), func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`"'{}[],`, r) }) {
		hidden.Add(word)
	}
	text := strings.Join(strings.Fields(hidden.Text(strings.ToValidUTF8(string(p.result.Stderr), "\uFFFD"))), " ")
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, text)
	if len(text) > most {
		text = "…" + strings.ToValidUTF8(text[len(text)-most:], "")
	}
	if text != "" {
		text = ": " + text
	}
	return text + advice
}
