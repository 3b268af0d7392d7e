package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// An operation is what a session does to its lease, for porcupine: it acquires a lock that others take over later,
// with tokens that increase, or is live.
type operation struct {
	acquire bool
	session string
	token   uint64
}

// lock is the model: the last session that acquired it is the holder.
var lock = porcupine.Model{
	Init: func() any { return operation{} },
	Step: func(state, input, _ any) (bool, any) {
		holder, op := state.(operation), input.(operation)
		if op.acquire {
			return op.token > holder.token, op
		}
		return op.session == holder.session, holder
	},
	DescribeOperation: func(input, _ any) string {
		op := input.(operation)
		if op.acquire {
			return fmt.Sprintf("%s acquires (%d)", op.session, op.token)
		}
		return op.session + " is live"
	},
	DescribeState: func(state any) string {
		holder := state.(operation)
		return fmt.Sprintf("%s (%d)", holder.session, holder.token)
	},
}

// operations returns the operations of leasehold's sessions. Of consecutive checks of one session it keeps the first
// and the last. It leaves out sessions whose overlap was excused.
func operations(sessions []*session) []porcupine.Operation {
	type seen struct {
		*session
		record
	}
	clients := map[string]int{}
	var looks []seen
	var ops []porcupine.Operation
	add := func(s *session, acquire bool, from, to time.Duration) {
		client, ok := clients[s.Candidate]
		if !ok {
			client = len(clients)
			clients[s.Candidate] = client
		}
		ops = append(ops, porcupine.Operation{
			ClientId: client, Input: operation{acquire, s.id, s.Token}, Call: int64(from), Return: int64(to),
		})
	}
	for _, s := range sessions {
		if s.Kind == elector || s.excused {
			continue
		}
		add(s, true, s.Since, s.first().After)
		for _, l := range s.looks {
			looks = append(looks, seen{s, l})
		}
	}
	slices.SortStableFunc(looks, func(a, b seen) int { return cmp.Compare(a.Before, b.Before) })
	for i, l := range looks {
		if i == 0 || looks[i-1].session != l.session || i == len(looks)-1 || looks[i+1].session != l.session {
			add(l.session, false, l.record.Before, l.record.After)
		}
	}
	return ops
}

// linearize checks the sessions against the model, for a minute at most. Its second result is for
// porcupine.VisualizePath.
func linearize(sessions []*session) (porcupine.CheckResult, porcupine.LinearizationInfo) {
	return porcupine.CheckOperationsVerbose(lock, operations(sessions), time.Minute)
}
