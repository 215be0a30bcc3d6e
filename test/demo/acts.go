package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// privateRegistry shows that there is something to solve.
func (d *demo) privateRegistry(ctx context.Context) error {
	fmt.Fprintf(d.out, "%s\n", d.paint(bold, "credential-broker: one kubelet entry, many backends, one answer"))
	d.say("All of it happens on 127.0.0.1 and in %s, and is gone afterwards.", d.dir)

	d.title("1. A registry that demands a password")
	err := d.registry.push(ctx, d.image)
	if err := d.holds(err, "pushed %s, three layers of random bytes", d.image); err != nil {
		return err
	}
	_, _, err = pull(ctx, d.image, login{})
	return d.holds(refused(err), "a pull without credentials is refused: 401 Unauthorized")
}

// whoIsAsked shows routing.
func (d *demo) whoIsAsked(ctx context.Context) error {
	d.title("2. Who is asked for its credentials?")
	d.command("credential-broker explain " + d.image)
	text, err := d.run(ctx, "explain", d.image)
	if err != nil {
		return err
	}
	d.shown(text)
	var explained struct {
		Providers []struct {
			Provider string `json:"provider"`
			Matches  bool   `json:"matches"`
		} `json:"providers"`
	}
	if err := d.runJSON(ctx, &explained, "explain", d.image); err != nil {
		return err
	}
	var matching []string
	for _, e := range explained.Providers {
		if e.Matches {
			matching = append(matching, e.Provider)
		}
	}
	want := []string{nodeFiles, mine, legacy}
	return d.holds(wrong(slices.Equal(matching, want), "%v match", matching), "three of the four providers match, in the order of the configuration")
}

// oneAnswer shows a request of the kubelet's, what it gets, and that this is good for a pull.
func (d *demo) oneAnswer(ctx context.Context) error {
	d.title("3. The kubelet asks once and gets one answer")
	answer, err := d.ask(ctx, nil)
	if err != nil {
		return err
	}
	d.shown(d.masked(answer.response))
	var got struct {
		Providers []struct {
			Name        string `json:"name"`
			Credentials []struct {
				Key      string `json:"key"`
				Username string `json:"username"`
			} `json:"credentials"`
		} `json:"providers"`
		Response struct {
			Auth []struct {
				Key      string `json:"key"`
				Provider string `json:"provider"`
			} `json:"auth"`
		} `json:"response"`
	}
	if err := d.runJSON(ctx, &got, "get", d.image); err != nil {
		return err
	}
	answered := map[string]string{} // user name by provider, for the key that two of them have
	for _, p := range got.Providers {
		for _, c := range p.Credentials {
			if c.Key == d.registry.host {
				answered[p.Name] = c.Username
			}
		}
	}
	winner := ""
	for _, a := range got.Response.Auth {
		if a.Key == d.registry.host {
			winner = a.Provider
		}
	}
	used := answer.response.Auth[d.registry.host].Username
	both := answered[nodeFiles] == "node" && answered[mine] == "example"
	if err := d.holds(wrong(both && winner == nodeFiles && used == "node", "user names by provider: %v, used: %s of %s", answered, used, winner),
		"%s and %s both answered for %s: %s stands first, so its value counts", nodeFiles, mine, d.registry.host, nodeFiles); err != nil {
		return err
	}
	_, _, err = pull(ctx, d.image, login{"example", outdated})
	if err := d.holds(refused(err), "luckily: the password that %s has is outdated, and the registry refuses it", mine); err != nil {
		return err
	}
	return d.pullWith(ctx, answer.response)
}

// oneDies shows that a provider that comes to grief takes nobody with it.
func (d *demo) oneDies(ctx context.Context) error {
	d.title("4. One backend is killed in the middle of a request")
	if err := os.WriteFile(filepath.Join(d.dir, "hang"), nil, 0o600); err != nil {
		return err
	}
	var victim, hanging int
	answer, err := d.ask(ctx, func(broker int) error {
		var err error
		if hanging, err = d.awaitHanging(ctx); err != nil {
			return err
		}
		if victim, err = childOf(broker, hanging); err != nil {
			return err
		}
		err = kill(victim)
		return d.holds(err, "%s's provider hangs; its backend (process %d, a child of the broker) gets SIGKILL", legacy, victim)
	})
	if err != nil {
		return err
	}
	reason := lineWith(answer.stderr, "provider="+legacy)
	if err := d.holds(wrong(reason != "", "standard error: %s", answer.stderr), "the broker's log has the reason:"); err != nil {
		return err
	}
	d.shown(afterLevel(reason))
	others := answer.response.Auth
	if err := d.holds(wrong(others[d.registry.host].Username == "node" && len(others) == 1, "%d auth keys", len(others)),
		"the others' answer arrived all the same, exit status 0: user %q for %s", "node", d.registry.host); err != nil {
		return err
	}
	if err := d.holds(wrong(answer.response.CacheDuration == 0, "it is %s", answer.response.CacheDuration),
		"its cacheDuration is 0s: the kubelet asks again at the next pull, when %s may be well again", legacy); err != nil {
		return err
	}
	if err := d.holds(awaitGone(ctx, victim, hanging), "no process was left behind, the hanging provider's included"); err != nil {
		return err
	}
	return d.pullWith(ctx, answer.response)
}

// epilogue is for who wants more.
func (d *demo) epilogue() {
	d.next([][2]string{
		{"bin/credential-broker help", "every command, with an example each"},
		{"docs/write-a-backend.md", "the example backend, from nothing in ten minutes"},
		{"docs/install.md", "on a node: one entry for the kubelet"},
		{"docs/agent.md", "the agent, on a node"},
		{"docs/migrate.md", "from the kubelet's entries that you have"},
		{"make demo-vault", "the same with a real Vault, which is built first"},
	})
}

// next says what to look at.
func (d *demo) next(hints [][2]string) {
	d.title("Everything above was checked. What to try next:")
	width := 28
	for _, hint := range hints {
		width = max(width, len(hint[0]))
	}
	for _, hint := range hints {
		fmt.Fprintf(d.out, "  %s%s %s\n", d.paint(cyan, hint[0]), strings.Repeat(" ", width-len(hint[0])), hint[1])
	}
}

// answer is what the broker gave the kubelet.
type answer struct {
	response kubelet.Response
	stderr   string
}

// ask sends a request as the kubelet does; meanwhile, if set, runs while the broker works.
func (d *demo) ask(ctx context.Context, meanwhile func(broker int) error) (answer, error) {
	request, err := json.Marshal(map[string]string{"apiVersion": kubelet.V1, "kind": "CredentialProviderRequest", "image": d.image})
	if err != nil {
		return answer{}, err
	}
	d.command("echo '" + string(request) + "' | credential-broker")
	cmd := d.cmd(ctx)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), &stdout, &stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return answer{}, err
	}
	var interfered error
	if meanwhile != nil {
		interfered = meanwhile(cmd.Process.Pid)
	}
	err = cmd.Wait()
	if interfered != nil {
		return answer{}, interfered
	}
	took := time.Since(began)
	if err := d.holds(withOutput(err, stderr.String()), "answered after %d ms", took.Milliseconds()); err != nil {
		return answer{}, err
	}
	response, err := kubelet.DecodeResponse(kubelet.V1, stdout.Bytes())
	return answer{response, stderr.String()}, err
}

// pullWith pulls with what was answered, tried as the kubelet tries it.
func (d *demo) pullWith(ctx context.Context, response kubelet.Response) error {
	tries, err := inKubeletsOrder(response, d.image)
	if err != nil {
		return err
	}
	var failures []error
	for i, try := range tries {
		layers, size, err := pull(ctx, d.image, try.login)
		if err == nil {
			which := "the only key"
			if len(tries) > 1 {
				which = fmt.Sprintf("key %d in the kubelet's order", i+1)
			}
			return d.holds(nil, "the pull works with user %q (%s, %s): %d layers, %d KiB", try.username, try.key, which, layers, size>>10)
		}
		failures = append(failures, fmt.Errorf("user %q: %w", try.username, err))
	}
	return d.holds(errors.Join(append(failures, errors.New("nothing left to try"))...), "the pull works")
}

// masked is the response as JSON, laid out for people, without passwords.
func (d *demo) masked(r kubelet.Response) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{\"apiVersion\": %q, \"kind\": \"CredentialProviderResponse\",\n \"cacheKeyType\": %q, \"cacheDuration\": %q,\n \"auth\": {", kubelet.V1, r.CacheKeyType, r.CacheDuration)
	keys := slices.Sorted(maps.Keys(r.Auth))
	for i, key := range keys {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n   %q: {\"username\": %q, \"password\": \"********\"}", key, r.Auth[key].Username)
	}
	b.WriteString("}}")
	return b.String()
}

// cmd is the broker with the demo's configuration, away from any other that this machine may have.
func (d *demo) cmd(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.broker, args...)
	cmd.Dir = d.dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CREDENTIAL_BROKER_") })
	cmd.Env = append(cmd.Env, "CREDENTIAL_BROKER_CONFIG="+filepath.Join(d.dir, "config.yaml"))
	if d.agent != "" {
		cmd.Env = append(cmd.Env, kubelet.AgentVariable+"="+d.agent)
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (d *demo) run(ctx context.Context, args ...string) (string, error) {
	cmd := d.cmd(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := withOutput(cmd.Run(), errOut.String()); err != nil {
		return "", fmt.Errorf("credential-broker %s: %w", strings.Join(args, " "), err)
	}
	return out.String(), nil
}

func (d *demo) runJSON(ctx context.Context, into any, args ...string) error {
	out, err := d.run(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

func withOutput(err error, output string) error {
	if err == nil || strings.TrimSpace(output) == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.TrimSpace(output))
}

func lineWith(text, what string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, what) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// afterLevel leaves out the time at the beginning of a log line.
func afterLevel(line string) string {
	if i := strings.Index(line, "level="); i >= 0 {
		return line[i:]
	}
	return line
}
