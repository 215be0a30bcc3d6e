package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/docker"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// dockerHelper is what clients make of "broker" in credsStore and credHelpers. Package fast knows the name too.
const dockerHelper = "docker-credential-broker"

const dockerCommand = "docker-credential"

// calledAs is the command that the program's name stands for, in front of the arguments: a link by that name is a Docker credential helper.
func calledAs(program string) []string {
	name := filepath.Base(program)
	if runtime.GOOS == "windows" {
		name = strings.TrimSuffix(strings.ToLower(name), ".exe")
	}
	if name == dockerHelper {
		return []string{dockerCommand}
	}
	return nil
}

func dockerCredentialCommand(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   dockerCommand + " get|list|store|erase|version",
		Short: "Be a Docker credential helper: the kubelet's credentials for skopeo, nerdctl, BuildKit and others",
		Long: `Be a Docker credential helper: the kubelet's credentials for skopeo, nerdctl, BuildKit and others.

Clients run a link to this program by the name ` + dockerHelper + `, which does the same. get reads a server (host[:port]) from standard input and writes its user name and secret as
JSON to standard output. Providers whose patterns have a path answer only clients that name it; providers with tokenAttributes, which answer for pods, never do. store and erase are refused.`,
		Example: `  echo registry.example | credential-broker docker-credential get
  ln -s /usr/libexec/credential-broker/credential-broker /usr/bin/docker-credential-broker      # then, for a client: {"credsStore": "broker"}`,
		Args: cobra.ArbitraryArgs, // what is wrong with them has to stand where clients look
		RunE: func(cmd *cobra.Command, args []string) error {
			err := serveDocker(cmd, opts, args)
			if err != nil && !errors.Is(err, errSilent) {
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), dockerComplaint(err))
				return errSilent
			}
			return err
		},
	}
}

// dockerComplaint words an error as clients show it: one line. What the protocol has words for stands alone.
func dockerComplaint(err error) string {
	if credentials.IsErrCredentialsNotFound(err) || credentials.IsCredentialsMissingServerURL(err) {
		return err.Error()
	}
	text := strings.TrimPrefix(err.Error(), "credential-broker: ") // the agent's words have it
	return "credential-broker: " + strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func serveDocker(cmd *cobra.Command, opts *options, args []string) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // as in servePlugin
	action := ""
	if len(args) == 1 {
		action = args[0]
	}
	switch action {
	case credentials.ActionGet:
		return getForDocker(cmd, opts)
	case credentials.ActionList:
		// Nothing is kept here. To name what there could be would have clients that list (docker build without BuildKit) ask for it all, and fail where any of it does.
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "{}")
		return err
	case credentials.ActionStore, credentials.ActionErase:
		// The password that comes with `store` is read, since some clients fail if it is not, and forgotten.
		_, _ = readAll(cmd.InOrStdin(), &fast.Attempt{})
		return fmt.Errorf("%s does nothing here: the broker keeps no credentials, its providers make them when they are asked for; to log in by hand, give the registry another helper, or \"\", in the client's credHelpers", action)
	case credentials.ActionVersion:
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s (github.com/credential-broker/credential-broker) %s\n", dockerHelper, version)
		return err
	default:
		return fmt.Errorf("want one of get, list, store, erase and version, got %q", args)
	}
}

// getForDocker answers one server.
func getForDocker(cmd *cobra.Command, opts *options) error {
	data, err := readAll(cmd.InOrStdin(), &fast.Attempt{})
	if err != nil {
		return fmt.Errorf("reading the server: %w", err)
	}
	server, img, err := docker.ReadServer(data)
	if err != nil {
		return err
	}
	if docker.IsHubToken(img) {
		return credentials.NewErrCredentialsNotFound()
	}
	cfg, err := opts.load()
	if err != nil {
		return err
	}
	// The client hands our standard error on to the terminal.
	log, closeLog := newLogFrom(slog.LevelWarn, cfg.Log, cmd.ErrOrStderr(), true)
	defer closeLog()

	answer, err := opts.answerDocker(cmd, cfg, log, img)
	if err != nil {
		return err
	}
	response, err := kubelet.DecodeResponse(kubelet.V1, answer)
	if err != nil {
		return err
	}
	auth, ok := docker.Pick(img, response)
	if !ok {
		if why := docker.WhyNone(cfg.Providers, img); len(why) > 0 {
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s: no credentials for %s: %s\n", dockerHelper, img, strings.Join(why, "; "))
		}
		return credentials.NewErrCredentialsNotFound()
	}
	var out bytes.Buffer
	if err := json.NewEncoder(&out).Encode(credentials.Credentials{ServerURL: server, Username: auth.Username, Secret: string(auth.Password)}); err != nil {
		return errors.New("the credential cannot be written as JSON") // the error might quote a value
	}
	return writeResponse(cmd, out.Bytes())
}

// answerDocker resolves an image as for the kubelet's entry without tokens, since there is no pod: through the agent, or here where that does not answer. It starts no agent: that would have this client's
// environment, and would answer the kubelet with it.
func (o *options) answerDocker(cmd *cobra.Command, cfg *config.Config, log *slog.Logger, img string) ([]byte, error) {
	audience := "" // the providers' without tokenAttributes
	data, err := kubelet.WriteRequest(broker.Request{Image: img})
	if err != nil {
		return nil, err
	}
	request, err := o.agentRequest(cmd, fast.Resolve, data)
	if err != nil {
		return nil, err
	}
	request.Audience, request.HasAudience = audience, true
	cfg.Agent.AutoStart = false
	if reply := o.askAgent(cmd.Context(), cfg, log, &fast.Attempt{}, request); reply != nil {
		if reply.Status != 0 {
			return nil, errors.New(strings.TrimSpace(string(reply.Stderr)))
		}
		return reply.Stdout, nil
	}
	caller := newCaller(cfg, log, true)
	defer func() { _ = caller.Close() }()
	return kubelet.Answer(cmd.Context(), data, broker.New(cfg, cfg.ForAudience(&audience), caller, log).Resolve)
}
