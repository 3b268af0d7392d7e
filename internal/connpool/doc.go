// Package connpool makes requests to one server over few connections, and finds out which of them are dead.
//
// # Few connections
//
// A request goes over the first connection that has room for it. When none has, one more is opened, by one dial for all
// that wait. net/http's own pool dials once for each request that finds no room: 400 requests made 386 connections. A
// dial goes on when the requests that wait for it have given up. Each connection is made from the files (certificates,
// authorities) as they are at that time.
//
// # Liveness
//
// Everything that is heard over a connection shows that it lives: while answers and watch events come, nothing is sent
// for this purpose, and no timer of the pool runs. A connection becomes suspect in one of two ways:
//
//   - It was silent. Nothing was heard for 1.1 times the interval at which something usually is; an HTTP/2 ping was
//     sent then; and nothing, not even the answer to the ping, was heard for half an interval or, if that took longer,
//     for as long as the last dial took.
//   - It was deaf to two requests, one after the other: each was given up after at least the time of a dial, and no
//     other request was answered meanwhile. That something is heard proves nothing here: a connection may be dead in
//     one direction only, or lead to a server that answers pings and no requests. One slow request proves nothing
//     either.
//
// A suspect connection gets no more requests, but it is not closed yet. A new connection is dialled, and the two race.
// If the suspect one is heard (a deaf one: if it answers a request) before the dial has ended, it is trusted again, and
// the new one is spare. Otherwise it is closed, and the requests on it fail. A dial takes a round trip and begins
// later, so that a connection that is only slow wins this race, however long its round trips have become. A dead one is
// replaced half an interval after the ping, or as soon as a dial succeeds.
//
// HTTP/1 has no pings: a request that is given up closes its connection, and TCP's keep-alive finds the rest.
package connpool
