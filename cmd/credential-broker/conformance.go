package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/credential-broker/credential-broker/backends/backendtest/conformance"
	"github.com/credential-broker/credential-broker/broker/plugin"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// judged is what `conformance -o json` prints.
type judged struct {
	Executable string       `json:"executable"`
	Passed     int          `json:"passed"`
	Failed     int          `json:"failed"`
	NotRun     int          `json:"notRun"`
	Rules      []judgedRule `json:"rules"`
}

type judgedRule struct {
	Name    string   `json:"name"`
	Demand  string   `json:"demand"`
	Outcome string   `json:"outcome,omitempty"`
	Seen    string   `json:"seen,omitempty"`
	Mend    string   `json:"mend,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	TookMS  float64  `json:"tookMs,omitempty"`
}

// conformanceFlags say what the backend is good for.
type conformanceFlags struct {
	config, image, otherImage string
	env                       []string
	tokenFile, secretsFile    string
	annotations               map[string]string
	run                       string
	timeout                   time.Duration
	list                      bool
}

func conformanceCommand(opts *options) *cobra.Command {
	var output outputFormat
	var flags conformanceFlags
	cmd := &cobra.Command{
		Use:   "conformance EXECUTABLE",
		Short: "Judge a backend by the rules of the protocol",
		Long: `Judge a backend by the rules of the protocol: start the executable as a broker does, again and again, and look whether it keeps them. The exit status is 1
if it breaks one. What cannot be judged, for want of an image for example, is listed as not run, with the reason.

Give the settings that the backend wants and an image that it then has credentials for: without them little can be said about its answers.`,
		Example: `  credential-broker conformance ./credential-backend-mine --config settings.yaml --image registry.example/team/app
  credential-broker conformance dockerconfig --config '{file: /root/.docker/config.json}' --image docker.io/team/app
  credential-broker conformance ./credential-backend-mine --run '^settings' -o json
  credential-broker conformance --rules`,
		Args: func(cmd *cobra.Command, args []string) error {
			if flags.list {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			rules, err := flags.rules()
			if err != nil {
				return err
			}
			if flags.list {
				return listRules(cmd, rules, output)
			}
			executable, err := opts.backendFile(args[0])
			if err != nil {
				return err
			}
			suite, err := flags.suite(executable)
			if err != nil {
				return err
			}
			defer suite.Close()
			return judge(cmd, suite, executable, rules, output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.config, "config", "", "the backend's settings, the `config` of a provider: a YAML or JSON file, or the object itself in braces (default {})")
	f.StringVar(&flags.image, "image", "", "an image that the backend has credentials for")
	f.StringVar(&flags.otherImage, "other-image", "", "an image that it has none for (default one of a host that nobody has)")
	f.StringArrayVar(&flags.env, "env", nil, "a variable to set for the backend, `NAME=value`; may be repeated")
	f.StringVar(&flags.tokenFile, "token-file", "", "file with the service account token that requests carry")
	f.StringToStringVar(&flags.annotations, "annotation", nil, "an annotation of the service account that requests carry, `name=value`; may be repeated")
	f.StringVar(&flags.secretsFile, "secrets-file", "", "file with secrets, one a line, that the backend must not print or report; passwords in its answers and the token are looked for anyway")
	f.StringVar(&flags.run, "run", "", "run only the rules whose name matches this regular expression")
	f.DurationVar(&flags.timeout, "timeout", 0, "time for a single call of the backend (default 15s)")
	f.BoolVar(&flags.list, "rules", false, "list the rules, and judge nothing")
	output.register(cmd)
	for _, file := range []string{"config", "token-file", "secrets-file"} {
		_ = cmd.MarkFlagFilename(file)
	}
	return cmd
}

// backendFile is the executable that is meant: a file, or an installed backend's name.
func (o *options) backendFile(argument string) (string, error) {
	if _, err := os.Stat(argument); err == nil || filepath.Base(argument) != argument {
		return argument, nil
	}
	dir, err := o.backendDirectoryFor()
	if err != nil {
		return "", err
	}
	return plugin.Find(dir, argument)
}

// backendDirectoryFor is backendDirectory where --config means something else.
func (o *options) backendDirectoryFor() (string, error) {
	other := *o
	other.config = ""
	return other.backendDirectory()
}

func (f *conformanceFlags) rules() ([]conformance.Rule, error) {
	pattern, err := regexp.Compile(f.run)
	if err != nil {
		return nil, fmt.Errorf("--run: %w", err)
	}
	var rules []conformance.Rule
	for _, rule := range conformance.Rules() {
		if pattern.MatchString(rule.Name) {
			rules = append(rules, rule)
		}
	}
	if len(rules) == 0 {
		return nil, fmt.Errorf("--run %q matches no rule: --rules lists them", f.run)
	}
	return rules, nil
}

func (f *conformanceFlags) suite(executable string) (*conformance.Suite, error) {
	o := conformance.Options{Executable: executable, Env: f.env, Annotations: f.annotations, Timeout: f.timeout, Host: hostToKill}
	var err error
	if o.Config, err = readSettings(f.config); err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	for flag, to := range map[string]struct {
		value string
		image *string
	}{"--image": {f.image, &o.Image}, "--other-image": {f.otherImage, &o.OtherImage}} {
		if to.value == "" {
			continue
		}
		if *to.image, err = imageArgument(to.value); err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
	}
	for _, variable := range f.env {
		if name, _, ok := strings.Cut(variable, "="); !ok || name == "" {
			return nil, fmt.Errorf("--env %q: want NAME=value", name)
		}
	}
	if f.tokenFile != "" {
		token, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("--token-file: %w", err)
		}
		o.Token = secret.Secret(strings.TrimSpace(string(token)))
	}
	if f.secretsFile != "" {
		lines, err := os.ReadFile(f.secretsFile)
		if err != nil {
			return nil, fmt.Errorf("--secrets-file: %w", err)
		}
		for line := range strings.Lines(string(lines)) {
			o.Secrets = append(o.Secrets, secret.Secret(strings.TrimRight(line, "\r\n")))
		}
	}
	return conformance.New(o)
}

// readSettings gives a backend's settings as JSON.
func readSettings(argument string) (json.RawMessage, error) {
	if argument == "" {
		return json.RawMessage("{}"), nil
	}
	text, name := []byte(argument), "the object"
	if !strings.HasPrefix(strings.TrimSpace(argument), "{") {
		var err error
		if text, err = os.ReadFile(argument); err != nil {
			return nil, err
		}
		name = argument
	}
	if json.Valid(text) { // as it is, numbers and all
		return text, nil
	}
	var settings map[string]any
	if err := yaml.Unmarshal(text, &settings); err != nil {
		return nil, fmt.Errorf("%s is neither JSON nor YAML: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if settings == nil {
		settings = map[string]any{}
	}
	return json.Marshal(settings)
}

func judge(cmd *cobra.Command, suite *conformance.Suite, executable string, rules []conformance.Rule, output outputFormat) error {
	j := judged{Executable: executable, Rules: []judgedRule{}}
	s := newScreen(cmd)
	for _, rule := range rules {
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		r := suite.Judge(cmd.Context(), rule)
		switch r.Outcome {
		case conformance.Passed:
			j.Passed++
		case conformance.Failed:
			j.Failed++
		case conformance.NotRun:
			j.NotRun++
		}
		j.Rules = append(j.Rules, judgedRule{
			Name: r.Rule, Demand: r.Demand, Outcome: string(r.Outcome), Seen: r.Seen, Mend: r.Mend, Reason: r.Reason, Notes: r.Notes, TookMS: float64(r.Took.Microseconds()) / 1000,
		})
		if !output.json() {
			printResult(s, r) // one at a time: the whole takes seconds
		}
	}
	if output.json() {
		if err := printJSON(cmd, j); err != nil {
			return err
		}
	} else {
		printVerdict(s, j)
	}
	if j.Failed > 0 {
		return errSilent
	}
	return nil
}

func printResult(s screen, r conformance.Result) {
	styles := map[conformance.Outcome]style{conformance.Passed: green, conformance.Failed: red, conformance.NotRun: yellow}
	line := func(what, text string) { s.printf("           %s %s\n", s.paint(dim, what), text) }
	s.printf("%s  %-24s %s\n", s.paint(styles[r.Outcome], fmt.Sprintf("%-9s", r.Outcome)), r.Rule, s.paint(dim, milliseconds(r.Took)))
	if r.Outcome == conformance.Failed {
		line("demanded:", r.Demand)
		line("seen:", r.Seen)
		if r.Mend != "" {
			line("mend:", r.Mend)
		}
	}
	if r.Reason != "" {
		line("because:", r.Reason)
	}
	for _, note := range r.Notes {
		line("note:", note)
	}
}

func printVerdict(s screen, j judged) {
	verdict := fmt.Sprintf("%d %s passed, %d failed, %d not run", j.Passed, plural("rule", j.Passed), j.Failed, j.NotRun)
	if j.Failed > 0 {
		verdict = s.paint(red, verdict)
	}
	s.printf("\n%s: %s\n", j.Executable, verdict)
}

func listRules(cmd *cobra.Command, rules []conformance.Rule, output outputFormat) error {
	listed := make([]judgedRule, len(rules))
	rows := make([][]cell, len(rules))
	for i, rule := range rules {
		listed[i] = judgedRule{Name: rule.Name, Demand: rule.Demand}
		rows[i] = []cell{{rule.Name, bold}, {rule.Demand, plain}}
	}
	if output.json() {
		return printJSON(cmd, listed)
	}
	newScreen(cmd).table([]string{"RULE", "DEMAND"}, rows)
	return nil
}

// hostToKill is this program once more, as the broker that one of the rules kills.
func hostToKill(ctx context.Context) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, self, conformanceHost), nil
}

const conformanceHost = "conformance-host"

// conformanceHostCommand is for the conformance command alone.
func conformanceHostCommand() *cobra.Command {
	return &cobra.Command{
		Use:    conformanceHost,
		Short:  "Start a backend for the conformance command, to be killed",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := conformance.Host(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
			if _, ok := errors.AsType[*plugin.Error](err); ok {
				return errSilent // it has been said on standard output
			}
			return err
		},
	}
}
