package config

import (
	"testing"
	"time"
)

func TestAnAgentThatTheConfigurationDoesNotNameBoundsTheCacheToo(t *testing.T) {
	hour := time.Hour
	minute := DefaultMaxCacheDurationWithAgent
	for name, c := range map[string]struct {
		text string
		with func(*Config)
		want *time.Duration
	}{
		"named elsewhere":                     {"", func(c *Config) { c.SetAgent("/run/a.sock") }, &minute},
		"named elsewhere, a bound":            {"maxCacheDuration: 1h\n", func(c *Config) { c.SetAgent("/run/a.sock") }, &hour},
		"named elsewhere, explicitly none":    {"maxCacheDuration: \"\"\n", func(c *Config) { c.SetAgent("/run/a.sock") }, nil},
		"named here, and none is to be asked": {"agent: {socket: /run/a.sock}\n", func(c *Config) { c.SetAgent("") }, nil},
		"served by an agent":                  {"", (*Config).ServedByAgent, &minute},
		"served by an agent, a bound":         {"maxCacheDuration: 1h\n", (*Config).ServedByAgent, &hour},
	} {
		cfg, err := load(t, head+"providers: [{name: a, matchImages: [x.io]}]\n"+c.text)
		if err != nil {
			t.Fatal(err)
		}
		c.with(cfg)
		if got := cfg.MaxCacheDuration; (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
