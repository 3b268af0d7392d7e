package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// fanout measures what writes and watch events cost the API server, etcd included, by raw requests: the CPU time that
// conditional writes of a Lease take beyond that of the idle server, and what the events take in addition when many
// connections watch it. Then it measures a standby by many: a leader with that many standbys, and the leader alone.
func (b *bench) fanout() error {
	writes, events, err := b.rawFanout()
	if err != nil {
		return err
	}
	b.report.WriteCPU, b.report.EventCPU = writes.P50, events.P50
	b.report.add(row{What: "a conditional write: server CPU time", Unit: "s", Floor: writes}, nil)
	b.report.add(row{What: fmt.Sprintf("a watch event, of %d: server CPU time", b.watchers), Unit: "s", Floor: events},
		nil)
	var each [len(sides)]float64
	for _, which := range []int{ours, elector} {
		if each[which], err = b.standbyCPU(which); err != nil {
			return err
		}
	}
	b.report.add(row{
		What: fmt.Sprintf("a standby, of %d: server CPU time per second", b.watchers), Unit: "s",
		ClientGo: summarize(each[elector]), Leasehold: summarize(each[ours]),
	}, nil)
	return nil
}

// standbyCPU returns the server's CPU time for a standby in a second.
func (b *bench) standbyCPU(which int) (float64, error) {
	var cpu [2]float64 // percent of a core, of the leader alone and with standbys
	for i, standbys := range []int{0, b.watchers} {
		f, err := b.newFleetOf(which, standbys)
		if err != nil {
			return 0, err
		}
		if err := b.sleep(b.duration / 3); err != nil {
			return 0, err
		}
		if cpu[i], err = b.serverCPU(b.fanning); err != nil {
			return 0, err
		}
		if err := f.disband(); err != nil {
			return 0, err
		}
	}
	return (cpu[1] - cpu[0]) / 100 / float64(b.watchers), nil
}

// Writes per second of the raw writer: without watches, and with them.
const (
	writeRate = 50
	eventRate = 2
)

func (b *bench) rawFanout() (writes, events *summary, err error) {
	raw, err := b.newRawCrowd(1) // one Lease
	if err != nil {
		return nil, nil, err
	}
	defer raw.close()
	name := raw.names[0]
	// cpu returns the share of a core beyond the idle server's, while the Lease is written at a rate.
	cpu := func(rate int) (float64, error) {
		idle, err := b.serverCPU(b.idle)
		if err != nil {
			return 0, err
		}
		stop, err := b.write(name, rate)
		if err != nil {
			return 0, err
		}
		busy, err := b.serverCPU(b.idle)
		if e := stop(); err == nil {
			err = e
		}
		return (busy - idle) / 100, err
	}
	var perWrite, perEvent []float64
	for range b.fanouts {
		share, err := cpu(writeRate)
		if err != nil {
			return nil, nil, err
		}
		perWrite = append(perWrite, share/writeRate)
	}
	writes = summarize(perWrite...)
	unwatch, err := b.watchAll(name)
	if err != nil {
		return nil, nil, err
	}
	for range b.fanouts {
		share, e := cpu(eventRate)
		if e != nil {
			err = e
			break
		}
		perEvent = append(perEvent, (share-eventRate*writes.P50)/float64(eventRate*b.watchers))
	}
	if e := unwatch(); err == nil {
		err = e
	}
	return writes, summarize(perEvent...), err
}

// write renews a Lease at a rate per second, until stop is called.
func (b *bench) write(name string, rate int) (stop func() error, err error) {
	client, err := newRawClient(b.server.Config())
	if err != nil {
		return nil, err
	}
	lease, err := client.do(b.ctx, "GET", "/"+name, "application/json", nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for version := lease.ResourceVersion; ; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				done <- nil
				return
			}
			var err error
			if version, err = client.renew(b.ctx, name, version); err != nil {
				done <- err
				return
			}
		}
	}()
	return func() error {
		cancel()
		defer client.close()
		return <-done
	}, nil
}

// watchAll watches a Lease by as many connections as there are watchers, and returns once all have had an event.
func (b *bench) watchAll(name string) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(b.ctx)
	var all sync.WaitGroup
	var failed atomic.Pointer[error]
	received := make([]atomic.Int64, b.watchers)
	stop = func() error {
		cancel()
		all.Wait()
		if err := failed.Load(); err != nil {
			return *err
		}
		return nil
	}
	for i := range received {
		client, err := newRawClient(b.server.Config())
		if err != nil {
			return nil, err
		}
		all.Go(func() {
			defer client.close()
			if err := client.watch(ctx, name, &received[i]); ctx.Err() == nil {
				failed.Store(&err)
			}
		})
		if err := b.sleep(rand.N(5 * time.Millisecond)); err != nil { // not all handshakes at once
			return stop, err
		}
	}
	for deadline := time.Now().Add(tooLong); ; {
		ready := 0
		for i := range received {
			if received[i].Load() > 0 {
				ready++
			}
		}
		switch {
		case ready == len(received):
			return stop, nil
		case failed.Load() != nil || time.Now().After(deadline):
			_ = stop()
			if err := failed.Load(); err != nil {
				return stop, *err
			}
			return stop, fmt.Errorf("%d of %d watches have had an event", ready, len(received))
		}
		if err := b.sleep(50 * time.Millisecond); err != nil {
			return stop, err
		}
	}
}
