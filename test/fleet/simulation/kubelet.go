package simulation

import "time"

// What the kubelet does, read in v1.37.2.
const (
	// A pod that could not be synced is synced again after 10 s and a random half of that (pkg/kubelet/pod_workers.go).
	syncAgain       = 10 * time.Second
	syncAgainJitter = 0.5
	// A pull that failed is left alone for 10 s, doubled with each failure up to 300 s, and as new after twice that (pkg/kubelet/kubelet.go, client-go's flowcontrol.Backoff).
	backoffLeast = 10 * time.Second
	backoffMost  = 300 * time.Second
)

// pull is an image that a pod waits for. Each is a pod of its own, as containers of one pod are pulled one after another.
type pull struct {
	Pull
	node, registry int32
	backoff        time.Duration
	failed         time.Duration // the last time
	turn           int32         // counts the pull's look-ups: what was meant for an earlier one is not for this one
	has            bool
}

// want starts a pod.
func (r *run) want(node, registry int, when time.Duration) {
	r.pulls = append(r.pulls, pull{node: int32(node), registry: int32(registry), Pull: Pull{Wanted: when}})
	if r.Provider != Agents {
		r.calls = append(r.calls, call{api: int32(registry % r.APIs)})
	}
	r.unserved++
	r.at(when, podSync, len(r.pulls)-1)
}

func (r *run) place(p *pull) int { return int(p.node)*r.Registries + int(p.registry) }

// sync looks up the image's credentials. It does so each time the pod is synced, also while the pull is being left alone: the look-up comes before the back-off is looked at, and before the queue of serial pulls
// (EnsureImageExists in pkg/kubelet/images/image_manager.go), which is why it does not matter here whether images are pulled one by one. Look-ups of different images do not share a call.
func (r *run) sync(who int) {
	p := &r.pulls[who]
	if r.now < r.cached[r.place(p)] {
		r.lookedUp(who, true, 0)
		return
	}
	switch r.Provider {
	case Agents:
		r.ask(who)
	case Cold:
		c := &r.calls[who]
		*c = call{api: c.api, deadline: r.now + r.Timeout, adaptive: true, rate: newRateLimit(r.now)}
		r.dial(who)
	case Official:
		c := &r.calls[who]
		*c = call{api: c.api}
		r.dial(who)
	}
}

// lookedUp is the end of a look-up, with an answer that the kubelet may keep for some time for all images of the registry. Without credentials it goes to the registry all the same, which refuses.
func (r *run) lookedUp(who int, ok bool, keep time.Duration) {
	p := &r.pulls[who]
	p.turn++
	if ok {
		if !p.has {
			p.has, p.Credential = true, r.now
		}
		place := r.place(p)
		r.cached[place] = max(r.cached[place], r.now+keep)
	}
	if p.backoff > 0 && r.now-p.failed < p.backoff {
		r.syncLater(who)
		return
	}
	if ok {
		p.Pulled = r.now
		r.unserved--
		return
	}
	if p.backoff = min(2*p.backoff, backoffMost); p.backoff == 0 || r.now-p.failed > 2*backoffMost {
		p.backoff = backoffLeast
	}
	p.failed = r.now
	p.Failures++
	r.syncLater(who)
}

func (r *run) syncLater(who int) {
	r.at(r.now+syncAgain+scale(syncAgain, syncAgainJitter*r.random.Float64()), podSync, who)
}
