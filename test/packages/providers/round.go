//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
)

const unit = "credential-broker.service"

// dropIns is where a round's change of the unit is.
const dropIns = "/etc/systemd/system/" + unit + ".d"

// restore makes the unit what it was.
func restore() error {
	if err := os.RemoveAll(dropIns); err != nil {
		return err
	}
	_, err := run("systemctl", "daemon-reload")
	return err
}

// round starts the agent as a unit with that change, has it answer for each provider, and stops it.
func (s *sources) round(title, change string) (err error) {
	fmt.Fprintf(os.Stdout, "every backend under the unit: %s\n", title)
	if err := errors.Join(os.RemoveAll(kept), os.RemoveAll(logFile)); err != nil {
		return err
	}
	if change != "" {
		if _, err := file(filepath.Join(dropIns, "round.conf"), "", 0o644, change); err != nil {
			return err
		}
	}
	if _, err := run("systemctl", "daemon-reload"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	if _, err := run("systemctl", "start", "credential-broker.socket"); err != nil {
		return err
	}
	var failures []error
	for _, p := range s.providers {
		err := s.ask(p)
		if killed := p.filtered && change != ""; killed && err == nil {
			err = errors.New("it made a call that is filtered, and was not killed: the round shows nothing")
		} else if killed && strings.Contains(err.Error(), "bad system call") {
			fmt.Fprintf(os.Stdout, "  %-18s killed, as it should be: %s\n", p.name, strings.TrimSpace(err.Error()))
			continue
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("provider %s: %w", p.name, err))
		}
	}
	return errors.Join(append(failures, s.processes(), observed(), s.end())...)
}

// ask gets an answer for a provider's image through the agent, and tries it.
func (s *sources) ask(p provider) error {
	out, failure := run("credential-broker", "get", "--show-secrets", "-o", "json", p.image)
	var got struct {
		Agent    string
		Response struct {
			Auth []struct{ Username, Password, Provider string }
		}
		Providers []struct {
			Name, Error string
			Asked       bool
		}
	}
	if err := json.Unmarshal(out, &got); err != nil {
		return errors.Join(failure, err)
	}
	for _, asked := range got.Providers {
		if asked.Error != "" {
			return errors.New(asked.Error)
		}
	}
	if failure != nil {
		return failure
	}
	if got.Agent == "" {
		return errors.New("the agent was not asked")
	}
	if len(got.Response.Auth) != 1 || got.Response.Auth[0].Provider != p.name {
		return fmt.Errorf("%d answers: %s", len(got.Response.Auth), out)
	}
	answer := got.Response.Auth[0]
	if err := p.works(p.image, answer.Username, answer.Password); err != nil {
		return err
	}
	as := p.user
	if as == "" {
		as = "root"
	}
	fmt.Fprintf(os.Stdout, "  %-18s as %-7s good for %s\n", p.name, as, p.image)
	return nil
}

// processes says whether each backend is filtered, may win no privileges, and runs as its user.
func (s *sources) processes() error {
	out, err := run("credential-broker", "status", "-o", "json")
	if err != nil {
		return err
	}
	var status struct {
		Configurations []struct {
			Providers []struct {
				Name      string
				Processes []struct{ PID int }
			}
		}
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return err
	}
	running := map[string]int{}
	for _, c := range status.Configurations {
		for _, p := range c.Providers {
			for _, process := range p.Processes {
				running[p.Name] = process.PID
			}
		}
	}
	var failures []error
	for _, p := range s.providers {
		account, err := user.Lookup("root")
		if p.user != "" {
			account, err = user.Lookup(p.user)
		}
		if err != nil {
			return err
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", running[p.name]))
		if err != nil {
			failures = append(failures, fmt.Errorf("provider %s: its backend: %w", p.name, err))
			continue
		}
		for _, want := range []string{"Seccomp:\t2\n", "NoNewPrivs:\t1\n", "Uid:\t" + account.Uid + "\t"} {
			if !bytes.Contains(text, []byte(want)) {
				failures = append(failures, fmt.Errorf("provider %s: its backend's /proc/%d/status does not say %q", p.name, running[p.name], want))
			}
		}
	}
	return errors.Join(failures...)
}

// observed says whether the agent is heard in the ways that are configured besides the journal.
func observed() error {
	answer, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err == nil && !bytes.Contains(text, []byte("credential_broker_")) {
		err = fmt.Errorf("no metrics at %s", metrics)
	}
	log, failure := os.ReadFile(logFile)
	if failure == nil && !bytes.Contains(log, []byte("the agent serves")) {
		failure = fmt.Errorf("%s does not say that the agent serves", logFile)
	}
	return errors.Join(err, failure)
}

// died is what the agent logs of a process that was killed. Whoever is killed for a system call is said to have ended by that.
var died = regexp.MustCompile(`SIGSYS|bad system call|code=dumped|code=killed|a backend has ended|did not end`)

// end stops the agent, and says what was wrong with it, its backends or its end.
func (s *sources) end() error {
	invocation, err := run("systemctl", "show", "--property=InvocationID", "--value", unit)
	if err != nil {
		return err
	}
	if s.made != nil && len(s.made.Users()) == 0 {
		err = errors.New("nothing is lent, so the agent's end has nothing to give back")
	}
	_, stopped := run("systemctl", "stop", "credential-broker.socket", unit)
	err = errors.Join(err, stopped)
	if s.made != nil && len(s.made.Users()) != 0 {
		err = errors.Join(err, fmt.Errorf("the agent's end left %d users that Vault had made", len(s.made.Users())))
	}
	journal, failure := run("journalctl", "--no-pager", "--output=cat", "_SYSTEMD_INVOCATION_ID="+string(bytes.TrimSpace(invocation)), "+", "INVOCATION_ID="+string(bytes.TrimSpace(invocation)))
	err = errors.Join(err, failure)
	if !bytes.Contains(journal, []byte("the agent ends")) {
		err = errors.Join(err, errors.New("the journal does not say that the agent ended in order"))
	}
	for line := range strings.Lines(string(journal)) {
		if died.MatchString(line) && !strings.Contains(line, "provider=exec-mounts") {
			err = errors.Join(err, errors.New("journal: "+strings.TrimSpace(line)))
		}
	}
	failed, failure := run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential-broker*")
	if err = errors.Join(err, failure); len(failed) != 0 {
		err = errors.Join(err, fmt.Errorf("failed units: %s", failed))
	}
	if _, missing := os.Stat(kept); missing != nil {
		err = errors.Join(err, fmt.Errorf("what a provider keeps in /tmp is not there for one that is started without the agent: %w", missing))
	}
	return err
}

// run gives a command's output, also with an error, which has what it wrote to standard error.
func run(name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), nil
}
