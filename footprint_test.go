package leasehold

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A lease of many costs its process one goroutine, the loop's own, and little memory. What a lease keeps counts twice:
// the heap grows to twice of what is live before it is collected. If this fails, a heap profile that was written with
// runtime.MemProfileRate = 1 shows what was added (go tool pprof -sample_index=inuse_space -lines).
func TestMemoryOfALease(t *testing.T) {
	const (
		leases     = 1000
		mostHeap   = 6600 // bytes
		mostStacks = 5000 // bytes: stacks of 2 and 4 kB
	)
	synctest.Test(t, func(t *testing.T) {
		var monitor Monitor
		client := leasetest.NewServer().Client("a")
		ctx, stop := context.WithCancel(t.Context())
		var loops sync.WaitGroup
		for i := range leases {
			loops.Go(func() {
				for s := range Sessions(ctx, WithLease(fmt.Sprintf("%s-%d", name, i)), WithNamespace(ns),
					WithClient(client), WithDuration(time.Hour), WithMonitor(&monitor), inVirtualTime, unlogged) {
					<-s.Done()
				}
			})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, l := range monitor.Leases() {
			if !l.Leading || l.Following != "shared watch" {
				t.Fatalf("%s: leading %v, following %q", l.Name, l.Leading, l.Following)
			}
		}
		with := usedMemory()
		stop()
		loops.Wait()
		time.Sleep(2 * time.Hour) // stopped timers may be kept until their time
		without := usedMemory()
		heap, stacks := (with.heap-without.heap)/leases, (with.stacks-without.stacks)/leases
		goroutines := with.goroutines - without.goroutines
		t.Logf("for each of %d leases %d bytes of heap, %d of stacks; %d goroutines", leases, heap, stacks, goroutines)
		if heap > mostHeap || stacks > mostStacks && !raced() || goroutines > leases+10 {
			t.Errorf("want at most %d bytes of heap, %d of stacks, and one goroutine", mostHeap, mostStacks)
		}
		runtime.KeepAlive(&monitor)
	})
}

// raced reports whether the test runs with the race detector, whose calls need more stack.
func raced() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

type memory struct{ heap, stacks, goroutines int64 }

// usedMemory returns what the process uses after garbage collections, each of which halves stacks that are little used.
func usedMemory() memory {
	for range 5 {
		runtime.GC()
	}
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/sched/goroutines:goroutines"},
	}
	metrics.Read(samples)
	value := func(i int) int64 { return int64(samples[i].Value.Uint64()) }
	return memory{value(0), value(1), value(2)}
}
