//go:build tools

// Package kubernetes is a module of its own that pins the kubelet and the API server which test/node builds and runs, so that their dependencies stay out of every other go.mod. Nothing is written
// here: test/node builds k8s.io/kubernetes/cmd/kubelet and k8s.io/kubernetes/cmd/kube-apiserver in this directory.
//
// Kubernetes' repository replaces its staging modules (k8s.io/api and the rest) with its own ./staging, and a replacement counts for nobody but the module that makes it: so each is replaced here with
// what was published from it, v0.37.2.
package kubernetes

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
