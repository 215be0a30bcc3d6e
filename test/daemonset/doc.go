// Package daemonset holds the manifests below examples/kubernetes, the installer and its image to what docs/daemonset.md says of them. It needs the executables that `make build` puts into bin/.
package daemonset
