package main

import (
	"runtime"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/test/fleet/simulation"
)

// fleet is what the flags say.
type fleet struct {
	seed                      uint64
	nodes, images, registries int
}

// scenario is one run: a row of a table.
type scenario struct {
	name   string
	config simulation.Config
	summary
}

// scenarios are all runs, in the tables that show them. A run may be in two tables.
type scenarios struct {
	four, one, size, constants, outage, day []*scenario
}

// What happens on the day.
var (
	dayOutage  = simulation.Window{From: 12 * time.Hour, Until: 12*time.Hour + 30*time.Minute}
	dayUpgrade = 18 * time.Hour
	dayRollout = 18*time.Hour + 5*time.Minute
	dayEnd     = 24 * time.Hour
	startEnd   = time.Hour // the start is over by then
)

// startOutage is the outage during which a fleet starts.
var startOutage = simulation.Window{Until: 5 * time.Minute}

func newScenarios(f fleet) *scenarios {
	row := func(name string, provider simulation.Provider, change func(*simulation.Config)) *scenario {
		s := &scenario{name: name, config: simulation.Config{
			Seed: f.seed, Provider: provider, Agent: simulation.DefaultAgent(),
			Nodes: f.nodes, Images: f.images, Registries: f.registries, APIs: f.registries, Spread: 5 * time.Second,
		}}
		if change != nil {
			change(&s.config)
		}
		return s
	}
	agents := func(name string, change func(*simulation.Config)) *scenario {
		return row(name, simulation.Agents, change)
	}

	official, cold, own := row("official provider", simulation.Official, nil), row("broker without agents", simulation.Cold, nil), agents("agents", nil)
	one := func(c *simulation.Config) { c.APIs = 1 }
	down := func(c *simulation.Config) { c.Outages = []simulation.Window{startOutage} }
	day := func(c *simulation.Config) {
		c.Spread = 5 * time.Minute
		c.Until, c.Churn, c.Outages = dayEnd, 2, []simulation.Window{dayOutage}
		c.Upgrades, c.Rollouts, c.HandOver = []time.Duration{dayUpgrade}, []time.Duration{dayRollout}, true
	}
	both := func(changes ...func(*simulation.Config)) func(*simulation.Config) {
		return func(c *simulation.Config) {
			for _, change := range changes {
				change(c)
			}
		}
	}
	size := func(nodes int) func(*simulation.Config) {
		return func(c *simulation.Config) { c.Nodes, c.APIs = nodes, 1 }
	}
	all := &scenarios{
		four: []*scenario{official, cold, own},
		one:  []*scenario{row("official provider", simulation.Official, one), agents("agents", one)},
		constants: []*scenario{
			own,
			agents("`timeout: 45s` for the provider", func(c *simulation.Config) { c.Timeout = 45 * time.Second }),
			agents("no attempts in the background", noBackground),
			agents("pauses without jitter", noJitter),
			agents("pauses growing to 15 s", longestPause(15*time.Second)),
			agents("pauses growing to 5 min", longestPause(5*time.Minute)),
		},
		outage: []*scenario{
			row("official provider", simulation.Official, down),
			agents("agents", down),
			agents("pauses without jitter", both(down, noJitter)),
			agents("pauses growing to 15 s", both(down, longestPause(15*time.Second))),
			agents("pauses growing to 5 min", both(down, longestPause(5*time.Minute))),
			agents("no attempts in the background", both(down, noBackground)),
		},
		day: []*scenario{
			row("official provider", simulation.Official, day),
			agents("agents", day),
			agents("agents, no hand-over at the upgrade", both(day, func(c *simulation.Config) { c.HandOver = false })),
			agents("agents, renewals without jitter", both(day, func(c *simulation.Config) {
				renewal := c.Agent.Renewal
				c.Agent.Renewal = func(from, until time.Time, _ float64) time.Time { return renewal(from, until, 0.5) }
			})),
			agents("agents that do not renew", both(day, func(c *simulation.Config) { c.Agent.Renewal = nil })),
			agents("agents, one region", both(day, one)),
		},
	}
	for _, nodes := range []int{f.nodes / 50, f.nodes * 3 / 50, f.nodes / 5} {
		all.size = append(all.size,
			row(count(nodes)+" nodes, official provider", simulation.Official, size(nodes)),
			agents(count(nodes)+" nodes, agents", size(nodes)))
	}
	return all
}

func noBackground(c *simulation.Config) { c.Agent.Background = false }

// noJitter: of the random part always the same.
func noJitter(c *simulation.Config) {
	pause := c.Agent.Pause
	c.Agent.Pause = func(failures int, _ float64) time.Duration { return pause(failures, 0.5) }
}

// longestPause is a pause like the product's that grows to another length.
func longestPause(longest time.Duration) func(*simulation.Config) {
	return func(c *simulation.Config) {
		c.Agent.Pause = func(failures int, random float64) time.Duration {
			whole := min(time.Second<<min(failures-1, 30), longest)
			return whole/2 + time.Duration(float64(whole/2)*random)
		}
	}
}

// run simulates all of them, as many at once as there are processors. Those that take longest come first.
func (s *scenarios) run() {
	todo := make(chan *scenario)
	var wait sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			for s := range todo {
				s.summary = summarize(s.config, simulation.Run(s.config))
			}
		})
	}
	seen := map[*scenario]bool{}
	for _, table := range [][]*scenario{s.one, s.outage, s.day, s.four, s.constants, s.size} {
		for _, row := range table {
			if !seen[row] {
				seen[row] = true
				todo <- row
			}
		}
	}
	close(todo)
	wait.Wait()
}
