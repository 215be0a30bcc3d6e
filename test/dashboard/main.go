// Command dashboard draws docs/dashboard.svg: what examples/grafana/dashboard.json shows of an agent. A real agent answers a synthetic load for a few minutes, a real Prometheus scrapes it and answers the
// dashboard's expressions, and the panels are drawn in Grafana's layout. All of it stays on loopback. `make dashboard` runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	repo := flag.String("repo", "../..", "the repository, with bin/ built")
	length := flag.Duration("for", 4*time.Minute, "how long the load lasts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *repo, *length)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

// dashboard is what is used of Grafana's format.
type dashboard struct {
	Title  string  `json:"title"`
	Panels []panel `json:"panels"`
}

type panel struct {
	Type    string `json:"type"`
	Title   string `json:"title"`
	GridPos struct {
		X, Y, W, H int
	} `json:"gridPos"`
	FieldConfig struct {
		Defaults struct {
			Unit   string   `json:"unit"`
			Max    *float64 `json:"max"`
			Custom struct {
				Stacking struct {
					Mode string `json:"mode"`
				} `json:"stacking"`
			} `json:"custom"`
			Thresholds struct {
				Steps []struct {
					Color string   `json:"color"`
					Value *float64 `json:"value"`
				} `json:"steps"`
			} `json:"thresholds"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Targets []struct {
		Expr         string `json:"expr"`
		LegendFormat string `json:"legendFormat"`
	} `json:"targets"`
}

func run(ctx context.Context, repo string, length time.Duration) error {
	repo, err := filepath.Abs(repo)
	if err != nil {
		return err
	}
	var board dashboard
	text, err := os.ReadFile(filepath.Join(repo, "examples/grafana/dashboard.json"))
	if err == nil {
		err = json.Unmarshal(text, &board)
	}
	if err != nil {
		return err
	}
	found, err := exec.CommandContext(ctx, filepath.Join(repo, "tools/prometheus.sh"), "prometheus").Output()
	if err != nil {
		return errors.New("there is no prometheus, of Debian's package of that name")
	}
	dir, err := os.MkdirTemp("", "credential-broker-dashboard-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	n, err := startNode(ctx, repo, dir)
	if err != nil {
		return err
	}
	defer n.stop()
	p, err := startPrometheus(ctx, strings.TrimSpace(string(found)), dir, n.metrics)
	if err != nil {
		return err
	}
	defer p.stop()

	fmt.Printf("the load lasts %s\n", length)
	began := time.Now()
	if err := n.load(ctx, length); err != nil {
		return err
	}
	picture, err := draw(ctx, board, p, began.Add(warmUp), time.Now())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(repo, "docs/dashboard.svg"), picture, 0o644)
}

// warmUp is left out of the picture: a rate needs a past.
const warmUp = 15 * time.Second
