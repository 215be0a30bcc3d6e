// Package simulation is a fleet of nodes that want credentials of ECR, as a sequence of events: no clock, no network, no process, and the same run for the same seed. What it knows of the kubelet, of the AWS
// SDK and of ECR's limit was read in their sources and documents, which the comments name; when an agent renews and how long it pauses is the product's own code (broker/agent/cache).
package simulation

import (
	"math/rand/v2"
	"time"
)

// Provider is who the kubelet asks.
type Provider int

// The providers that are compared.
const (
	// Official is ecr-credential-provider: a process and an API call for each image that the kubelet's cache does not answer.
	Official Provider = iota
	// Cold is the broker without an agent: the same, but with the ECR backend's own patience.
	Cold
	// Agents is the broker with an agent on each node.
	Agents
)

// Config is what happens to a fleet. All times are since the start of the run.
type Config struct {
	Seed     uint64
	Provider Provider
	// Agent is how agents behave; ignored for the other providers. See DefaultAgent.
	Agent Agent
	// Timeout is the provider's `timeout` in the broker's configuration. Zero: 15 s, its default.
	Timeout time.Duration

	// Nodes start within Spread. Each then wants Images, a pod for each, from Registries, whose tokens come from APIs: registry i is of API i modulo APIs.
	Nodes, Images, Registries, APIs int
	Spread                          time.Duration

	// Until is when nothing new happens any more. The run ends once every pull is served that was wanted by then.
	Until time.Duration
	// Churn is how many new images a node pulls in an hour, besides.
	Churn float64
	// Outages are the times in which no API answers (the registries do).
	Outages []Window
	// Upgrades are the times at which the agents of all nodes, if they have any, are replaced within a minute.
	Upgrades []time.Duration
	// HandOver: an agent's successor takes over what it holds.
	HandOver bool
	// Rollouts are the times at which each node pulls a new image from each registry, all nodes within a minute.
	Rollouts []time.Duration
}

// Pull is an image that a pod of a node waits for.
type Pull struct {
	Wanted     time.Duration
	Credential time.Duration // when the kubelet first had one
	Pulled     time.Duration // when it first went to the registry with one
	Failures   int           // pulls without credentials before that
}

// Result is what happened.
type Result struct {
	// Pulls are all images of all nodes, in the order in which they were wanted; the first Nodes × Images are those of the start.
	Pulls []Pull
	// Seconds counts the calls at all APIs, in seconds from the start.
	Seconds []Second
	// Total is the sum of Seconds.
	Total Second
	// Events is how much there was to simulate.
	Events int
}

// kind is what an event is.
type kind uint8

const (
	podSync   kind = iota // the kubelet's pod worker comes to a pull
	giveUp                // a pull's request has waited for as long as it may
	attempt               // a client sends a call
	called                // and has its answer, or gives up
	entryDue              // an agent's entry is to be renewed, or asked for again
	nodeChurn             // a node wants another image
	upgrade               // a node's agent is replaced
	rollout               // a node wants an image of each registry
)

// run is a simulation under way.
type run struct {
	Config
	queue  queue
	now    time.Duration
	random *rand.Rand

	apis    []api
	seconds []Second
	result  Result

	pulls    []pull
	unserved int
	cached   []time.Duration // the kubelets' caches: until when, by node and registry

	calls    []call    // of pulls; with agents, of backends
	backends []backend // with agents, by node and API
	entries  []entry   // with agents, by node and registry
}

// Run simulates.
func Run(c Config) Result {
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	r := &run{Config: c, random: rand.New(rand.NewPCG(c.Seed, uint64(c.Nodes)))}
	r.apis = make([]api, c.APIs)
	for i := range r.apis {
		r.apis[i] = api{left: Burst, outages: c.Outages}
	}
	r.cached = make([]time.Duration, c.Nodes*c.Registries)
	if c.Provider == Agents {
		r.entries = make([]entry, c.Nodes*c.Registries)
		r.backends = make([]backend, c.Nodes*c.APIs)
		r.calls = make([]call, len(r.backends))
		for i := range r.calls {
			r.calls[i] = call{api: int32(i % c.APIs), adaptive: true, rate: newRateLimit(0)}
		}
	}
	r.begin()
	for r.now < c.Until || r.unserved > 0 {
		e, ok := r.queue.pop()
		if !ok {
			break
		}
		r.now = e.at
		r.result.Events++
		r.handle(e)
	}
	return r.finish()
}

// begin schedules what happens to the fleet from outside.
func (r *run) begin() {
	starts := make([]time.Duration, r.Nodes)
	for node := range starts {
		starts[node] = scale(r.Spread, r.random.Float64())
	}
	for node, start := range starts {
		for image := range r.Images {
			r.want(node, image%r.Registries, start)
		}
		if r.Churn > 0 {
			r.at(start+r.untilChurn(), nodeChurn, node)
		}
		for _, t := range r.Upgrades {
			if r.Provider != Agents {
				break
			}
			r.at(t+scale(time.Minute, r.random.Float64()), upgrade, node)
		}
		for _, t := range r.Rollouts {
			r.at(t+scale(time.Minute, r.random.Float64()), rollout, node)
		}
	}
}

// untilChurn is exponentially distributed: pods come when they come.
func (r *run) untilChurn() time.Duration {
	return scale(time.Duration(float64(time.Hour)/r.Churn), r.random.ExpFloat64())
}

func (r *run) at(t time.Duration, k kind, who int) {
	r.queue.push(event{at: t, kind: k, who: int32(who)})
}

func (r *run) handle(e event) {
	who := int(e.who)
	switch e.kind {
	case podSync:
		r.sync(who)
	case giveUp:
		if p := &r.pulls[who]; p.turn == e.turn {
			r.lookedUp(who, false, 0)
		}
	case attempt:
		r.attempt(who)
	case called:
		r.called(who)
	case entryDue:
		r.due(who)
	case nodeChurn:
		if r.now < r.Until {
			r.want(who, r.random.IntN(r.Registries), r.now)
			r.at(r.now+r.untilChurn(), nodeChurn, who)
		}
	case upgrade:
		r.upgrade(who)
	case rollout:
		for registry := range r.Registries {
			r.want(who, registry, r.now)
		}
	}
}

// attempt sends a call. A failure is known a round trip later, and all that it leads to is the next attempt, which is scheduled right away: half as many events.
func (r *run) attempt(who int) {
	c := &r.calls[who]
	c.attempts++
	c.answer = r.apis[c.api].ask(r.now)
	second := int(r.now / time.Second)
	for len(r.seconds) <= second {
		r.seconds = append(r.seconds, Second{})
	}
	r.seconds[second].add(c.answer)

	back := r.now + roundTrip
	if c.adaptive {
		c.rate.update(back, c.answer == throttled)
	}
	if c.answer != granted {
		if next, ok := c.again(back, r.random.Float64()); ok {
			r.at(next, attempt, who)
			return
		}
		back = max(back, c.gaveUp)
	}
	r.at(back, called, who)
}

// dial begins a call: its first attempt, once the client's own limit allows it.
func (r *run) dial(who int) {
	c := &r.calls[who]
	first, ok := c.turn(r.now)
	switch {
	case !ok:
		c.answer = throttled
		r.at(c.gaveUp, called, who)
	case first > r.now:
		r.at(first, attempt, who)
	default:
		r.attempt(who)
	}
}

// called is the end of a call.
func (r *run) called(who int) {
	ok := r.calls[who].answer == granted
	switch r.Provider {
	case Agents:
		r.tokenArrived(who, ok)
	case Cold:
		r.lookedUp(who, ok, TokenLife-expiryMargin)
	case Official:
		r.lookedUp(who, ok, TokenLife/2)
	}
}

func (r *run) finish() Result {
	r.result.Pulls = make([]Pull, len(r.pulls))
	for i, p := range r.pulls {
		r.result.Pulls[i] = p.Pull
	}
	r.result.Seconds = r.seconds
	for _, s := range r.seconds {
		r.result.Total.Granted += s.Granted
		r.result.Total.Throttled += s.Throttled
		r.result.Total.Down += s.Down
	}
	return r.result
}
