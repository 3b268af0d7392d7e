// Package leasehold lets a program do work only while it holds a Kubernetes Lease.
package leasehold
