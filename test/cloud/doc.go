// Package cloud is a fake cloud on loopback: it answers as the clouds' own services do, refuses what they refuse, and keeps a log of what it was asked. Its services are
// reached under their real names, through an HTTP CONNECT proxy that ends TLS with certificates of a CA of its own (SDKs refuse FIPS and dual-stack endpoints when they are
// given an endpoint). It knows nothing of the product, and the product never imports it.
package cloud
