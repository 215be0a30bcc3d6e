package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// What a storm is.
const (
	stormImages = 50 // of one registry, at once

	crowd        = 64  // at once
	crowdEach    = 320 // requests in a round
	goalInCrowd  = 5   // times as many a second as the official provider
	inARow       = 100 // requests in a round, ten rounds
	stormRounds  = 7
	inARowRounds = 10
)

// contender is one way to have requests answered.
type contender struct {
	name string
	// host and agent are what it asks about and whom, if it asks one.
	host  string
	agent *agentProcess
	// mayFail: a request without an answer is counted, and no reason to stop. silent: it gives no answers.
	mayFail, silent bool
	// prepare, if not nil, comes before each round, on nobody's time.
	prepare func() error
	// command answers the request for the n-th image.
	command func(n int) (*exec.Cmd, error)

	took   []time.Duration // for a round's requests
	calls  []int           // for a token, in a round
	failed []int           // requests, in a round
}

// storm measures many requests: for 50 images of one registry at once, with 64 always under way, and one after the other.
func (b *bench) storm() error {
	id := b.cloud.Identities[0]
	config, err := b.config(hosts, "ecr", false)
	if err != nil {
		return err
	}
	running, err := b.startAgent(id, config)
	if err != nil {
		return err
	}
	// through is a request through an agent, none where that is nil.
	through := func(name string, agent *agentProcess) *contender {
		c := &contender{name: name, host: host, agent: agent}
		c.command = func(n int) (*exec.Cmd, error) {
			who := id
			if c.agent != nil {
				who = id.asking(c.agent.socket)
			}
			return b.command(who, fmt.Sprintf("%s/team/app-%d", c.host, n), program.Broker, "--config", config)
		}
		return c
	}
	official := &contender{name: "the official provider", command: func(n int) (*exec.Cmd, error) {
		return b.command(id, fmt.Sprintf("%s-%d", image, n), program.CloudProviderAWS)
	}}
	cold := through("credential-broker without an agent", nil)
	cold.mayFail = true // on two processors that have other work, 50 backends at once may take longer than the 15 seconds that each has
	fresh := through("credential-broker, an agent that has just started", nil)
	fresh.prepare = func() (err error) {
		if err := fresh.agent.close(); err != nil {
			return err
		}
		fresh.agent, err = b.startAgent(id, config)
		return err
	}
	unheld := through("credential-broker, an agent whose backend runs", running)
	unheld.prepare = func() error {
		unheld.host = b.newRegistry()
		return nil
	}
	warm := through("credential-broker, an agent that holds the answer", running)
	empty := &contender{name: "an empty Go program", silent: true, command: func(int) (*exec.Cmd, error) { return exec.Command(b.path(emptyProgram)), nil }}

	fmt.Fprintf(b.out, "\n%d images of one registry at once, until all are answered (medians of %d rounds)\n", stormImages, stormRounds)
	all := []*contender{official, cold, fresh, unheld, warm}
	if err := b.rounds(all, stormRounds, stormImages, stormImages); err != nil {
		return err
	}
	for _, c := range all {
		fmt.Fprintf(b.out, "%-68s %9s %6.2f × official   calls for a token: %d", c.name, ms(median(c.took)), paired(c.took, official.took), median(c.calls))
		if n := slices.Max(c.failed); n > 0 {
			fmt.Fprintf(b.out, "   up to %d FAILED", n)
		}
		fmt.Fprintln(b.out)
	}
	for c, want := range map[*contender]int{official: stormImages, fresh: 1, unheld: 1, warm: 0} {
		if slices.Min(c.calls) != want || slices.Max(c.calls) != want {
			return fmt.Errorf("%s: %d images of one registry took %v calls for a token, want %d", c.name, stormImages, c.calls, want)
		}
	}

	for _, s := range []struct {
		title               string
		atOnce, each, times int
		goal                float64
	}{
		{fmt.Sprintf("%d requests at once, always", crowd), crowd, crowdEach, stormRounds, goalInCrowd},
		{fmt.Sprintf("%d requests in a row", inARow*inARowRounds), 1, inARow, inARowRounds, 0},
	} {
		fmt.Fprintf(b.out, "\n%s (medians of %d rounds of %d)\n", s.title, s.times, s.each)
		empty.took, official.took, warm.took = nil, nil, nil
		all := []*contender{empty, official, warm}
		if err := b.rounds(all, s.times, s.atOnce, s.each); err != nil {
			return err
		}
		for _, c := range all {
			fmt.Fprintf(b.out, "%-68s %9.0f a second\n", c.name, float64(s.each)/median(c.took).Seconds())
		}
		goal := ""
		if s.goal > 0 {
			goal = fmt.Sprintf("   (goal: at least %.0f)", s.goal)
		}
		fmt.Fprintf(b.out, "%-68s %9.2f%s\n", "ours × the official provider", paired(official.took, warm.took), goal)
	}
	return nil
}

// rounds has each contender answer n requests, so many at once, in turn, and once besides for the caches.
func (b *bench) rounds(all []*contender, rounds, atOnce, n int) error {
	for round := range rounds + 1 {
		for _, c := range all {
			if err := b.round(c, atOnce, n, round > 0); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

func (b *bench) round(c *contender, atOnce, n int, counts bool) error {
	if c.prepare != nil {
		if err := c.prepare(); err != nil {
			return err
		}
	}
	if _, err := b.cloud.work(); err != nil {
		return err
	}
	commands := make(chan *exec.Cmd, n)
	outputs := make([]bytes.Buffer, n)
	for i := range n {
		cmd, err := c.command(i)
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = &outputs[i], &outputs[i]
		commands <- cmd
	}
	close(commands)
	var workers sync.WaitGroup
	var failed atomic.Int64
	began := time.Now()
	for range atOnce {
		workers.Go(func() {
			for cmd := range commands {
				if cmd.Run() != nil {
					failed.Add(1)
				}
			}
		})
	}
	workers.Wait()
	took := time.Since(began)
	done, err := b.cloud.work()
	if err != nil {
		return err
	}
	for i := range outputs {
		if !c.silent && !c.mayFail && !bytes.Contains(outputs[i].Bytes(), []byte(`"password"`)) || failed.Load() > 0 && !c.mayFail {
			return fmt.Errorf("a request failed: %s", outputs[i].String())
		}
	}
	if counts {
		c.took, c.calls, c.failed = append(c.took, took), append(c.calls, done["ecr GetAuthorizationToken 200"]), append(c.failed, int(failed.Load()))
	}
	return nil
}
