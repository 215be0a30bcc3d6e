package gar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/child"
	"github.com/credential-broker/credential-broker/backends/gar/internal/ask"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// checkProgram is the name of the program that asks Google's API for a check. It is no part of the backend, which each pull starts: the library of that API is larger than all the rest.
const checkProgram = "gar-check"

// checkTime bounds a check that has no deadline.
const checkTime = 20 * time.Second

// checkEnvironment is what of the environment reaches the program: how to reach Google, and whose certificates to take. Windows needs the last one for anything.
var checkEnvironment = []string{"HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "SYSTEMROOT"}

// besideThis is where the program is installed: beside the running one.
func besideThis() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("look for the directory of the running program: %w", err)
	}
	name := checkProgram
	if isWindows {
		name += ".exe"
	}
	return filepath.Join(filepath.Dir(self), name), nil
}

// ask has the program answer a question. What it gets, it gets by standard input alone; its file is held to what a backend's is.
func (b *Backend) ask(ctx context.Context, q ask.Question) (ask.Answer, error) {
	path, err := b.program()
	if err != nil {
		return ask.Answer{}, backends.Unavailable(err)
	}
	switch err := trust.Executable(path, nil); {
	case errors.Is(err, fs.ErrNotExist):
		return ask.Answer{}, backends.InvalidConfig("", "check needs %s beside the backend, and there is no %s: install it from the release that the backend is from", checkProgram, path)
	case err != nil:
		return ask.Answer{}, backends.InvalidConfig("", "check needs %s beside the backend: %w", checkProgram, err)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	deadline, _ := ctx.Deadline()
	q.Within = time.Until(deadline) * 9 / 10 // so that it can still say what it waited for
	question, err := json.Marshal(q)
	if err != nil {
		return ask.Answer{}, err
	}
	var env []string
	for _, name := range checkEnvironment {
		if value, ok := os.LookupEnv(name); ok && (b.cfg.Proxy == "" || !strings.EqualFold(name, "HTTPS_PROXY")) { // it may hold a password
			env = append(env, name+"="+value)
		}
	}
	result, err := child.Run(ctx, child.Command{Path: path, Env: env, Stdin: question, MaxStdout: 64 << 10})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return ask.Answer{}, backends.Unavailable(fmt.Errorf("%s: it did not end in time and was killed", path))
	case err != nil:
		return ask.Answer{}, backends.Unavailable(fmt.Errorf("%s: %w", path, err)) // without what it printed, which could quote the token
	}
	var answer ask.Answer
	if json.Unmarshal(result.Stdout, &answer) != nil {
		return ask.Answer{}, backends.Unavailable(fmt.Errorf("%s: it printed no answer: is it from the release that the backend is from?", path))
	}
	return answer, nil
}
