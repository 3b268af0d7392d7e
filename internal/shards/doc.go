// Package shards decides who owns which key of a group. It is pure: it makes no requests and reads no clock.
//
// The assignment is a function of the members, their weights, the keys that they know and the present owners. Buckets
// are the contiguous ranges of the 64-bit FNV-1a hash that KEP-5866 uses for server-side sharded list and watch.
package shards
