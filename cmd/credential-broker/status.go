package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/agent/cache"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

func statusCommand(opts *options) *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent does and holds",
		Long: `Show what the agent does and holds: for each provider, its backend's process and what became of the times it was asked; and every answer that is held, with its
expiry and when it is renewed. No secret is shown. The exit status is 1 if no agent answers.`,
		Example: `  credential-broker status
  credential-broker status --agent /run/credential-broker/agent.sock -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var status agent.Status
			data, err := opts.ask(cmd, fast.Status, nil, &status)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(cmd, json.RawMessage(data))
			}
			printStatus(newScreen(cmd), status, time.Now())
			return nil
		},
	}
	output.register(cmd)
	return cmd
}

func forgetCommand(opts *options) *cobra.Command {
	var output outputFormat
	var request agent.ForgetRequest
	cmd := &cobra.Command{
		Use:   "forget IMAGE | --provider NAME | --all",
		Short: "Have the agent drop answers, so that the next pull asks anew",
		Long: `Have the agent drop answers, so that the next pull asks anew: those for an image (what is held for its whole registry included), those of a provider, or all.
The backends concerned are started anew, so that they remember nothing either; where a backend can, what it lent is revoked. What the kubelet itself has cached stays until its cacheDuration is over: maxCacheDuration bounds that.`,
		Example: `  credential-broker forget registry.example/team/app
  credential-broker forget --provider ecr`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := len(args)
			if len(args) == 1 {
				name, err := imageArgument(args[0])
				if err != nil {
					return err
				}
				request.Image = name
			}
			for _, flag := range []string{"provider", "all"} {
				if cmd.Flags().Changed(flag) {
					given++
				}
			}
			if given != 1 || len(args) == 0 && request.Provider == "" && !request.All {
				return errors.New("give one of IMAGE, --provider NAME and --all")
			}
			body, err := json.Marshal(request)
			if err != nil {
				return err
			}
			var forgotten agent.Forgotten
			data, err := opts.ask(cmd, fast.Forget, body, &forgotten)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(cmd, json.RawMessage(data))
			}
			text := fmt.Sprintf("%d %s", forgotten.Answers, plural("answer", forgotten.Answers))
			if forgotten.Failures > 0 {
				text += fmt.Sprintf(" and %d %s", forgotten.Failures, plural("failure", forgotten.Failures))
			}
			newScreen(cmd).printf("%s forgotten\n", text)
			return nil
		},
	}
	cmd.Flags().StringVar(&request.Provider, "provider", "", "all answers of this provider")
	cmd.Flags().BoolVar(&request.All, "all", false, "all answers")
	output.register(cmd)
	return cmd
}

// ask asks the agent and decodes what it says, which is returned too.
func (o *options) ask(cmd *cobra.Command, operation fast.Operation, body []byte, into any) ([]byte, error) {
	socket, err := o.findAgent()
	if err != nil {
		return nil, err
	}
	request, err := o.agentRequest(cmd, operation, body)
	if err != nil {
		return nil, err
	}
	reply, reason, absent := fast.Ask(socket, request)
	switch {
	case absent:
		return nil, fmt.Errorf("no agent: %s: start it (systemctl start credential-broker, or credential-broker agent), or name its socket with --agent", reason)
	case reason != "":
		return nil, errors.New("the agent did not answer: " + reason)
	}
	return reply.Stdout, decodeReply(reply, into)
}

// decodeReply takes what the agent says out of its reply.
func decodeReply(reply fast.Reply, into any) error {
	if reply.Status != 0 {
		return errors.New(strings.TrimSuffix(strings.TrimPrefix(string(reply.Stderr), "credential-broker: "), "\n"))
	}
	if err := json.Unmarshal(reply.Stdout, into); err != nil {
		return fmt.Errorf("the agent answered what this version cannot read: %w", err)
	}
	return nil
}

// findAgent is where the agent is, by the command line, the environment, or else the configuration.
func (o *options) findAgent() (string, error) {
	socket, given := o.agentSocket()
	if !given {
		// What is wrong with the rest of the configuration does not matter: that is what the agent is asked about.
		cfg, problems, err := o.inspect()
		if err == nil && cfg.Agent.Socket == "" && len(problems) > 0 {
			err = problems
		}
		if err != nil {
			return "", fmt.Errorf("where is the agent? Neither --agent nor %s says it, and the configuration cannot be read: %w", kubelet.AgentVariable, err)
		}
		socket = cfg.Agent.Socket
	}
	if socket == "" {
		return "", fmt.Errorf("there is no agent: set agent.socket in the configuration, --agent or %s", kubelet.AgentVariable)
	}
	return socket, nil
}

func printStatus(s screen, status agent.Status, now time.Time) {
	s.printf("agent %s, pid %d, for %s: %d %s served, %d in flight\n", status.Version, status.PID, ago(now, status.Began), status.Requests,
		plural("request", int(status.Requests)), status.InFlight)
	for _, c := range status.Configurations {
		name := cmp.Or(c.Config, "the default configuration")
		if c.BackendDir != "" {
			name += ", backends in " + c.BackendDir
		}
		s.printf("\n%s\n", s.paint(bold, name))
		held := c.Omitted
		for _, a := range c.Answers {
			if !a.Obtained.IsZero() {
				held++
			}
		}
		s.printf("  loaded %s ago, %d %s since the start; %d %s held, %s\n", ago(now, c.Loaded), c.Reloads, plural("change", c.Reloads),
			held, plural("answer", held), size(c.Bytes))
		if c.Refused != "" {
			s.printf("  %s\n", s.paint(red, "what is on disk now is broken, and the one before serves on:"))
			for line := range strings.Lines(c.Refused) {
				s.printf("    %s\n", printable(strings.TrimSuffix(line, "\n")))
			}
		}
		printAgentProviders(s, c.Providers, now)
		printHeld(s, c.Answers, now)
		if c.Omitted > 0 {
			s.printf("  … and %d more\n", c.Omitted)
		}
	}
}

func printAgentProviders(s screen, providers []agent.Provider, now time.Time) {
	var rows [][]cell
	for _, p := range providers {
		process, restarts := cell{"not running", dim}, 0
		for _, b := range p.Processes {
			if b.PID != 0 {
				process = cell{"pid " + strconv.Itoa(b.PID), plain}
			}
			restarts += b.Restarts
		}
		last := cell{"-", dim}
		if p.Asked.LastFailure != "" {
			last = cell{ago(now, p.Asked.FailedAt) + " ago: " + strings.ReplaceAll(p.Asked.LastFailure, "\n", "; "), yellow}
		}
		rows = append(rows, []cell{
			{p.Name, bold},
			{p.Backend, plain},
			process,
			{strconv.Itoa(restarts), plain},
			{strconv.FormatUint(p.Asked.Calls, 10), plain},
			{ratioOf(p.Asked), plain},
			{strconv.FormatUint(p.Asked.Renewals, 10), plain},
			last,
		})
	}
	s.printf("\n")
	s.table([]string{"PROVIDER", "BACKEND", "PROCESS", "RESTARTS", "CALLS", "FROM MEMORY", "RENEWALS", "LAST FAILURE"}, rows)
}

// ratioOf is how many of the requests needed no call of their own.
func ratioOf(asked cache.ProviderStats) string {
	all := asked.Hits + asked.Shared + asked.Remembered + asked.Misses
	if all == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f %% of %d", 100*float64(all-asked.Misses)/float64(all), all)
}

func printHeld(s screen, answers []cache.Held, now time.Time) {
	if len(answers) == 0 {
		return
	}
	var rows [][]cell
	for _, h := range answers {
		ends := cell{until(now, h.Good), plain}
		switch {
		case h.Obtained.IsZero():
			ends = cell{"failed " + ago(now, h.FailedAt) + " ago", red}
		case !h.Fresh.After(now):
			ends.style = yellow // it serves because its source does not
		}
		rows = append(rows, []cell{
			{h.Provider, bold}, {string(h.Scope) + " " + h.Name, plain}, {h.Identity, plain}, ends, {until(now, h.Next), plain}, {ago(now, h.LastUsed) + " ago", plain},
		})
	}
	s.printf("\n")
	s.table([]string{"ANSWER OF", "FOR", "IDENTITY", "ENDS", "ASKED AGAIN", "LAST USED"}, rows)
}

// until says how far away a time is; "-" for none.
func until(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case !t.After(now):
		return "now"
	default:
		return "in " + roughly(t.Sub(now))
	}
}

func ago(now, t time.Time) string { return roughly(max(now.Sub(t), 0)) }

// roughly is a duration as people say it: two units at most.
func roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return d.Round(time.Second).String()
	}
}

func size(bytes int) string {
	if bytes < 10<<10 {
		return strconv.Itoa(bytes) + " bytes"
	}
	return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
}
