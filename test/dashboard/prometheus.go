package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// prometheus is one that scrapes one agent every two seconds.
type prometheus struct {
	cmd     *exec.Cmd
	address string
}

func startPrometheus(ctx context.Context, program, dir, target string) (*prometheus, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &prometheus{address: l.Addr().String()}
	_ = l.Close()
	config := filepath.Join(dir, "prometheus.yaml")
	text := fmt.Sprintf("global: {scrape_interval: 2s}\nscrape_configs: [{job_name: credential-broker, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p.cmd = exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "prometheus"), "--web.listen-address="+p.address, "--log.level=error")
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 300 {
		if found, err := p.query(ctx, "query", url.Values{"query": {"up == 1"}}); err == nil && len(found) == 1 {
			return p, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.stop()
			return nil, ctx.Err()
		}
	}
	p.stop()
	return nil, fmt.Errorf("prometheus does not scrape the agent at %s", target)
}

func (p *prometheus) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	_ = p.cmd.Wait()
}

// series are the values that an expression has over time.
type series struct {
	name   string
	times  []float64 // Unix seconds
	values []float64
}

// result is what Prometheus' API has for one series: one value or many.
type result struct {
	Metric map[string]string `json:"metric"`
	Value  sample            `json:"value"`
	Values []sample          `json:"values"`
}

// sample is a time and a number in words.
type sample struct{ at, value float64 }

// UnmarshalJSON implements json.Unmarshaler.
func (s *sample) UnmarshalJSON(text []byte) error {
	var value string
	if err := json.Unmarshal(text, &[]any{&s.at, &value}); err != nil {
		return err
	}
	var err error
	s.value, err = strconv.ParseFloat(value, 64)
	return err
}

func (p *prometheus) query(ctx context.Context, kind string, values url.Values) ([]result, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+"/api/v1/"+kind+"?"+values.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer struct {
		Error string `json:"error"`
		Data  struct {
			Result []result `json:"result"`
		} `json:"data"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		return nil, fmt.Errorf("%s: %s", values.Get("query"), answer.Error)
	}
	return answer.Data.Result, nil
}

// variables are what Grafana puts in: everything is selected, and a rate is that of four scrapes at least.
var variables = strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "10s", "[10m]", "[1m]")

// now gives an expression's one value at a time; false if it has none.
func (p *prometheus) now(ctx context.Context, expression string, at time.Time) (float64, bool, error) {
	found, err := p.query(ctx, "query", url.Values{"query": {variables.Replace(expression)}, "time": {seconds(at)}})
	if err != nil || len(found) == 0 {
		return 0, false, err
	}
	return found[0].Value.value, true, nil
}

// step is the time between two points of the picture.
const step = 2 * time.Second

// over gives an expression's values over time.
func (p *prometheus) over(ctx context.Context, expression, legend string, from, to time.Time) ([]series, error) {
	found, err := p.query(ctx, "query_range", url.Values{"query": {variables.Replace(expression)}, "start": {seconds(from)}, "end": {seconds(to)}, "step": {step.String()}})
	if err != nil {
		return nil, err
	}
	var all []series
	for _, f := range found {
		s := series{name: placeholder.ReplaceAllStringFunc(legend, func(of string) string { return f.Metric[strings.Trim(of, "{} ")] })}
		for _, v := range f.Values {
			s.times, s.values = append(s.times, v.at), append(s.values, v.value)
		}
		all = append(all, s)
	}
	return all, nil
}

var placeholder = regexp.MustCompile(`\{\{\s*\w+\s*\}\}`)

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }
