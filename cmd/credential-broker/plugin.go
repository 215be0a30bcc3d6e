package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// servePlugin is the kubelet's exec plugin: one request in, one response out.
func servePlugin(cmd *cobra.Command, opts *options, stdin *os.File) error {
	// Where nobody reads standard error any more, a line of the log is lost. Without this it would be the process. A handler rather than SIG_IGN, which child processes would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	data, err := readAll(stdin)
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	// The request may hold a pod's token: nobody that is started from here on shall find it.
	if err := forgetStdin(); err != nil {
		return err
	}
	request, version, err := kubelet.ReadRequest(data)
	if err != nil {
		return err
	}
	cfg, err := opts.load()
	if err != nil {
		return err
	}
	log, closeLog := newLog(cfg.Log, cmd.ErrOrStderr(), true)
	defer closeLog()
	caller := newCaller(cfg, log)
	defer func() { _ = caller.Close() }()

	result, err := broker.New(cfg, opts.providers(cmd, cfg, func(text string) { log.Warn(text) }), caller, log).Resolve(cmd.Context(), request)
	if err != nil {
		return err
	}
	response, err := encode(result.Response, version)
	if err != nil {
		return err
	}
	if _, err := cmd.OutOrStdout().Write(response); err != nil {
		return errors.New("writing the response to standard output failed: is whoever asked still there?")
	}
	return nil
}

// requestTimeout bounds the wait for the request's end. The kubelet writes it at once; together with the longest `timeout`, it had better not exceed the kubelet's minute by much.
const requestTimeout = 10 * time.Second

// readAll reads a request, and a byte more than the largest, so that the excess is seen.
func readAll(stdin io.Reader) ([]byte, error) {
	var data []byte
	read := make(chan error, 1)
	go func() {
		var err error
		data, err = io.ReadAll(io.LimitReader(stdin, kubelet.MaxRequestSize+1))
		read <- err
	}()
	timer := time.NewTimer(requestTimeout)
	defer timer.Stop()
	select {
	case err := <-read:
		return data, err
	case <-timer.C:
		return nil, fmt.Errorf("standard input has not ended after %s: whoever writes the request has to close it", requestTimeout)
	}
}

// encode writes the answer as the kubelet's document.
func encode(r broker.Response, version string) ([]byte, error) {
	response := kubelet.Response{
		CacheKeyType: string(r.CacheKeyType), CacheDuration: r.CacheDuration, Auth: make(map[string]kubelet.AuthConfig, len(r.Auth)),
	}
	for _, entry := range r.Auth {
		response.Auth[entry.Key] = kubelet.AuthConfig{Username: entry.Username, Password: entry.Password}
	}
	return response.Encode(version)
}
