package simulation

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small is a fleet that is simulated in no time and still throttled.
func small(p Provider) Config {
	return Config{Seed: 7, Provider: p, Agent: DefaultAgent(), Nodes: 400, Images: 12, Registries: 4, APIs: 2, Spread: 5 * time.Second}
}

// smallDay has everything that may happen to a fleet.
func smallDay(p Provider) Config {
	c := small(p)
	c.Nodes, c.Until, c.Churn = 50, 24*time.Hour, 2
	c.Outages = []Window{{12 * time.Hour, 12*time.Hour + 30*time.Minute}}
	c.Upgrades, c.Rollouts = []time.Duration{18 * time.Hour}, []time.Duration{18*time.Hour + 5*time.Minute}
	return c
}

var providers = map[string]Provider{"official": Official, "cold": Cold, "agents": Agents}

// everything is each provider's run of both fleets.
func everything(t *testing.T, test func(t *testing.T, c Config)) {
	for name, p := range providers {
		t.Run(name+" at the start", func(t *testing.T) { test(t, small(p)) })
		t.Run(name+" for a day", func(t *testing.T) { test(t, smallDay(p)) })
	}
}

func TestEveryPullIsServedInTheEndAndNoneBeforeItHasACredential(t *testing.T) {
	everything(t, func(t *testing.T, c Config) {
		r := Run(c)
		if len(r.Pulls) < c.Nodes*c.Images {
			t.Fatalf("%d pulls of %d nodes with %d images", len(r.Pulls), c.Nodes, c.Images)
		}
		for i, p := range r.Pulls {
			if p.Wanted > p.Credential || p.Credential > p.Pulled || p.Pulled == 0 {
				t.Fatalf("pull %d was wanted at %s, had a credential at %s and went through at %s", i, p.Wanted, p.Credential, p.Pulled)
			}
		}
	})
}

func TestNoAPIGivesOutMoreThanItsLimit(t *testing.T) {
	everything(t, func(t *testing.T, c Config) {
		seconds := Run(c).Seconds
		busy := false
		for from := range seconds {
			sum := 0
			for length, s := range seconds[from:min(len(seconds), from+120)] {
				sum += int(s.Granted)
				if limit := c.APIs * (Burst + Rate*(length+1)); sum > limit {
					t.Fatalf("%d tokens in the %d s from second %d, where the limit is %d", sum, length+1, from, limit)
				}
			}
			busy = busy || sum > c.APIs*Rate
		}
		if !busy {
			t.Error("nobody asked for more than the rate: nothing was tested")
		}
	})
}

func TestTheBucketHoldsABurstAndFillsAtItsRate(t *testing.T) {
	a := api{left: Burst}
	ask := func(now time.Duration, times int) (n int) {
		for range times {
			if a.ask(now) == granted {
				n++
			}
		}
		return n
	}
	got := []int{ask(0, 300), ask(time.Second, 300), ask(1500*time.Millisecond, 300), ask(time.Hour, 300)}
	if diff := cmp.Diff([]int{Burst, Rate, Rate / 2, Burst}, got); diff != "" {
		t.Errorf("granted of 300 calls at once, after 1 s, half a second and an hour (-want +got):\n%s", diff)
	}
}

func TestTheTotalIsTheSumOfItsSeconds(t *testing.T) {
	everything(t, func(t *testing.T, c Config) {
		r := Run(c)
		var sum Second
		for _, s := range r.Seconds {
			sum.Granted += s.Granted
			sum.Throttled += s.Throttled
			sum.Down += s.Down
		}
		if diff := cmp.Diff(sum, r.Total); diff != "" || sum.Calls() == 0 {
			t.Errorf("(-sum +total):\n%s", diff)
		}
	})
}

func TestARunDependsOnItsSeedAlone(t *testing.T) {
	everything(t, func(t *testing.T, c Config) {
		first := Run(c)
		if diff := cmp.Diff(first, Run(c)); diff != "" {
			t.Errorf("two runs differ (-first +second):\n%s", diff)
		}
		c.Seed++
		if cmp.Equal(first, Run(c)) {
			t.Error("another seed gives the same run")
		}
	})
}

func TestAgentsAskLessThanTheOfficialProvider(t *testing.T) {
	for nodes := 10; nodes <= 640; nodes *= 4 {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			official, agents := small(Official), small(Agents)
			official.Nodes, agents.Nodes = nodes, nodes
			theirs, ours := Run(official).Total, Run(agents).Total
			if want := int32(nodes * agents.APIs); ours.Granted != want {
				t.Errorf("agents took %d tokens, where one for each node and API is %d", ours.Granted, want)
			}
			if ours.Granted >= theirs.Granted || ours.Calls() >= theirs.Calls() {
				t.Errorf("agents: %+v, official provider: %+v", ours, theirs)
			}
		})
	}
}

func TestAnOutageIsSurvivedByWhoRenews(t *testing.T) {
	heldUp := func(c Config) (n int) {
		for _, p := range Run(c).Pulls {
			if p.Failures > 0 && c.Outages[0].contains(p.Wanted) {
				n++
			}
		}
		return n
	}
	c := smallDay(Agents)
	if n := heldUp(c); n != 0 {
		t.Errorf("%d pulls were held up, though every agent had hours left on its tokens", n)
	}
	c.Agent.Renewal = nil
	if n := heldUp(c); n == 0 {
		t.Error("nobody was held up where nothing is renewed")
	}
}

func TestAHandOverSavesTheCallsOfAnUpgrade(t *testing.T) {
	c := smallDay(Agents)
	forgotten := Run(c).Total.Granted
	c.HandOver = true
	if kept := Run(c).Total.Granted; kept >= forgotten {
		t.Errorf("%d tokens with hand-over, %d without", kept, forgotten)
	}
}

func TestHoweverManyImagesWaitAnAgentMakesOneCallAndPauses(t *testing.T) {
	calls := func(images int) int {
		c := small(Agents)
		c.Nodes, c.Images, c.Registries, c.APIs, c.Spread = 1, images, 1, 1, 0
		c.Outages = []Window{{0, 10 * time.Minute}}
		return int(Run(c).Total.Down)
	}
	one, many := calls(1), calls(30)
	// Pauses are at most a minute and at least half of one; each call is three attempts.
	if most := otherAttempts * (6 + 2*10); one == 0 || one > most || many > most {
		t.Errorf("in ten minutes without an answer %d calls for one image, %d for 30, want at most %d", one, many, most)
	}
}

func TestTheKubeletsBackOffDoublesUpTo300Seconds(t *testing.T) {
	c := small(Official)
	c.Nodes, c.Images, c.Registries, c.APIs = 1, 1, 1, 1
	c.Outages = []Window{{0, time.Hour}}
	p := Run(c).Pulls[0]
	// After 10, 20, 40, 80, 160 and then each 300 s, each time later by as much as the pod's next sync is: a back-off that does not grow would let hundreds through.
	if p.Failures < 14 || p.Failures > 17 {
		t.Errorf("%d pulls without credentials in an hour, want about 16", p.Failures)
	}
	if p.Credential < time.Hour || p.Credential > time.Hour+20*time.Second {
		t.Errorf("the credential came at %s: the kubelet looks for it every 10 to 15 s, in back-off or not", p.Credential)
	}
}

func TestTheOfficialProviderMakesThreeAttempts(t *testing.T) {
	c := call{answer: throttled}
	var waits []time.Duration
	for {
		c.attempts++
		next, ok := c.again(time.Hour, 1)
		if !ok {
			break
		}
		waits = append(waits, next-time.Hour)
	}
	if diff := cmp.Diff([]time.Duration{2 * time.Second, 4 * time.Second}, waits); diff != "" {
		t.Errorf("longest waits between attempts (-want +got):\n%s", diff)
	}
}

func TestTheBrokersBackend(t *testing.T) {
	tests := []struct {
		name        string
		answer      outcome
		least, most int32
	}{
		{"tries again until its time is over while it is throttled", throttled, 5, 9},
		{"tries three times when nothing answers", down, 3, 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := call{adaptive: true, deadline: 15 * time.Second, answer: test.answer, rate: newRateLimit(0)}
			random := rand.New(rand.NewPCG(1, 1))
			for now, ok := c.turn(0); ok; {
				c.attempts++
				c.rate.update(now+roundTrip, c.answer == throttled)
				if now > c.deadline {
					t.Fatalf("an attempt at %s, after the deadline", now)
				}
				now, ok = c.again(now+roundTrip, random.Float64())
			}
			if c.attempts < test.least || c.attempts > test.most {
				t.Errorf("%d attempts, want %d to %d", c.attempts, test.least, test.most)
			}
		})
	}
}

func TestEventsComeInTheOrderOfTheirTimes(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var q queue
	var last event
	left := 0
	for range 20_000 {
		if left == 0 || random.IntN(5) < 3 {
			q.push(event{at: last.at + time.Duration(random.IntN(3000))*time.Millisecond})
			left++
			continue
		}
		e, ok := q.pop()
		if !ok || e.before(last) {
			t.Fatalf("%v after %v", e, last)
		}
		last, left = e, left-1
	}
	for ; left > 0; left-- {
		if _, ok := q.pop(); !ok {
			t.Fatalf("%d events are lost", left)
		}
	}
	if e, ok := q.pop(); ok {
		t.Errorf("%v came twice", e)
	}
}
