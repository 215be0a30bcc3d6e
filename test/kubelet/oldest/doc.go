// Package oldest has the oldest kubelet that the broker is for, Kubernetes v1.26.15, read, run and cache the built broker: by its own code, as test/kubelet does with the newest. The
// two differ in what is around it (the order of entries, tokens, directories), and that is what is told here. There is nothing here to import.
//
// It is a module of its own since a build has one version of k8s.io/kubernetes, and below test/kubelet, where `make test` does not look for modules, since compiling it takes minutes:
// `make kubelet-versions` runs it. It shares the make-believe provider with test/kubelet, as a program; importing it would bring the newest kubelet's requirements with it.
package oldest
