package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/credential-broker/credential-broker/test/fleet/simulation"
)

func main() {
	for _, apis := range []int{4, 1} {
		for _, p := range []simulation.Provider{0, 1, 2} {
			t := time.Now()
			r := simulation.Run(simulation.Config{Seed: 1, Provider: p, Agent: simulation.DefaultAgent(), Nodes: 5000, Images: 30, Registries: 4, APIs: apis, Spread: 5 * time.Second})
			var c, d []time.Duration
			f := 0
			for _, p := range r.Pulls {
				c = append(c, p.Credential-p.Wanted)
				d = append(d, p.Pulled-p.Wanted)
				f += p.Failures
			}
			slices.Sort(c)
			slices.Sort(d)
			n := len(c)
			fmt.Println(apis, p, r.Total, r.Events, "cred", c[n/2], c[n*99/100], c[n-1], "pulled", d[n/2], d[n*99/100], d[n-1], f, time.Since(t))
		}
	}
}
