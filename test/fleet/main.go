// Fleet simulates a fleet of nodes that want credentials of ECR, and prints the tables of docs/fleet.md.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	f := documented
	flag.Uint64Var(&f.seed, "seed", f.seed, "of everything random")
	flag.IntVar(&f.nodes, "nodes", f.nodes, "how many nodes")
	flag.IntVar(&f.images, "images", f.images, "how many images each of them wants when it starts")
	flag.IntVar(&f.registries, "registries", f.registries, "from how many registries")
	picture := flag.String("picture", "", "write the picture to this `file` (SVG)")
	flag.Parse()

	s := newScenarios(f)
	s.run()
	for _, t := range s.tables() {
		fmt.Fprintf(os.Stdout, "%s\n\n%s\n", t.name, t)
	}
	if *picture != "" {
		if err := os.WriteFile(*picture, []byte(s.picture()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// documented is the fleet of docs/fleet.md.
var documented = fleet{seed: 1, nodes: 5000, images: 30, registries: 4}
