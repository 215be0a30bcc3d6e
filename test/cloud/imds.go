package cloud

import "time"

// Instance is an EC2 instance's metadata service, version 2.
type Instance struct{}

// Instance starts a metadata service; an empty role: an instance without one.
func (c *Cloud) Instance(roleARN string) *Instance { return &Instance{} }

// Environ points the SDKs to it and enables it; it goes after the cloud's own Environ.
func (i *Instance) Environ() []string { return nil }

// URL is its address.
func (i *Instance) URL() string { return "" }

// AllowV1 lets it answer requests without a token (HttpTokens=optional).
func (i *Instance) AllowV1() {}

// SetRegion changes where the instance is; us-east-1 without.
func (i *Instance) SetRegion(region string) {}

// ExceedHopLimit: answers to the request for a token never arrive, as in a container behind a hop limit of 1.
func (i *Instance) ExceedHopLimit() {}

// Absent: as on a machine outside AWS, nobody answers.
func (i *Instance) Absent() {}

// Refuse: as on a machine outside AWS whose network says so: connections are refused.
func (i *Instance) Refuse() {}

// Slow delays each answer by d of real time.
func (i *Instance) Slow(d time.Duration) {}
