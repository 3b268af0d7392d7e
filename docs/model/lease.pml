/*
 * The protocol of leasehold: candidates take, renew and release one Lease through a network that
 * delays, loses and reorders, while a person edits and deletes it. docs/safety.md says what is
 * modelled, how to run it, and what came out.
 *
 * One process makes one move after another, so that every interleaving is one sequence of choices.
 * All that is unique in the protocol (uid, acquireTime, renewTime) is named here by the
 * resourceVersion of the write that brought it, because that write is the only one that has it.
 */

#ifndef N
#define N 2             /* candidates */
#endif
#ifndef WRITES
#define WRITES 3        /* writes that take effect, a person's included */
#endif
#ifndef SLOTS
#define SLOTS 2         /* requests of one candidate that may still take effect, or be heard of */
#endif
#ifndef DELETES
#define DELETES 0       /* how often the Lease is deleted by hand */
#endif
#ifndef EDITS
#define EDITS 0         /* how often its labels are edited */
#endif

/* In one tick a clock advances by SLOW or FAST: the rates differ by D/R, the most that is allowed. */
#ifndef SLOW
#define SLOW 4
#endif
#ifndef FAST
#define FAST 5
#endif
#ifndef TICKS
#define TICKS 2
#endif
#define R (TICKS * 4)   /* renew deadline: TICKS of a slow clock, SLOW being 4 */
#define D (TICKS * 5)   /* duration: TICKS of a fast clock, FAST being 5 */
#ifndef WAIT
#define WAIT D          /* mutation: what a candidate waits */
#endif

#define NONE 255

/* The history of the Lease: what it says at each resourceVersion. */
typedef Record {
	byte owner;     /* NONE when nobody holds it */
	byte uid;       /* 0 when there is no Lease */
	byte term;      /* acquireTime */
	byte state      /* renewTime: the last write of the holder */
};
Record hist[WRITES + 1];
byte rv = 0;            /* the newest version */

mtype = { create, acquire, renew, release };    /* kinds of requests */
mtype = { waiting, asking, leading };           /* what a candidate does */

typedef Slot {
	bool used;
	bool heeded;    /* the sender waits for the reply */
	bool landed;    /* it took effect; at is the version that it brought */
	bool refused;   /* the server refused it */
	mtype kind;
	byte at;        /* first the version it is conditional on */
	byte term;      /* of a renewal or release: the sender's */
	byte age        /* time since it was sent, by the sender's clock */
};

typedef Candidate {
	mtype mode;
	byte rate;
	byte view;      /* the version it has seen last */
	byte since;     /* for how long it has seen the holder do nothing */
	byte deleted_wait;  /* for how long the holder of a deleted Lease may lead on */
	byte term;      /* while leading */
	byte trust;     /* time since the last write known to be good was sent */
	Slot slot[SLOTS]
};
Candidate c[N];

byte deletes = DELETES, edits = EDITS, token = 0;
byte i, j, k, v;        /* scratch */

#define LIVE(x) (c[x].mode == leading && c[x].trust < R)
#define SEEN(x) hist[c[x].view]

inline later(x, d) { if :: x + d > D -> x = D :: else -> x = x + d fi }
inline sooner(x, d) { if :: x > d -> x = x - d :: else -> x = 0 fi }

/* Time passes for all. */
inline tick() {
	for (k : 0 .. N - 1) {
		if
		:: SEEN(k).owner != NONE && SEEN(k).owner != k -> later(c[k].since, c[k].rate)
		:: else /* nobody is waited for */
		fi;
		if
		:: c[k].mode == leading -> later(c[k].trust, c[k].rate)
		:: else
		fi;
		sooner(c[k].deleted_wait, c[k].rate);
		for (v : 0 .. SLOTS - 1) {
			if
			:: c[k].slot[v].used && c[k].slot[v].kind != release && (c[k].slot[v].heeded || c[k].mode == leading) ->
				later(c[k].slot[v].age, c[k].rate)
			:: else
			fi
		}
	}
}

/* i takes note of version v (feed.note, viewer.see, keeper.absorb). */
inline see() {
	if
	:: SEEN(i).uid != hist[v].uid ->
		if
		:: SEEN(i).owner != NONE && SEEN(i).owner != i ->
#ifndef NODELETEDWAIT
			if
			:: v != c[i].view + 1 -> c[i].deleted_wait = D /* it may have been renewed unseen */
			:: else ->
				if
				:: D - c[i].since > c[i].deleted_wait -> c[i].deleted_wait = D - c[i].since
				:: else
				fi
			fi
#else
			skip
#endif
		:: else
		fi;
		c[i].since = 0
	:: else ->
		if
		:: SEEN(i).state != hist[v].state || SEEN(i).owner != hist[v].owner -> c[i].since = 0
		:: else
		fi
	fi;
	c[i].view = v;
	if
	:: c[i].mode == leading && (hist[v].owner != i || hist[v].term != c[i].term || hist[v].uid == 0) ->
		c[i].mode = waiting /* lost */
	:: else
	fi;
	for (k : 0 .. SLOTS - 1) {
		if
		:: c[i].slot[k].used && c[i].slot[k].landed && !c[i].slot[k].heeded && hist[v].state == c[i].slot[k].at ->
			if
			:: c[i].mode == leading && c[i].slot[k].kind == renew && c[i].slot[k].age < c[i].trust ->
				c[i].trust = c[i].slot[k].age /* adopted: the reply never came */
			:: else
			fi
		:: else
		fi
	}
}

/* The request in slot j of i takes effect, or is refused. */
inline land() {
	if
	:: rv < WRITES && (
		(c[i].slot[j].kind == create && hist[rv].uid == 0) ||
#ifdef BLINDRELEASE
		(c[i].slot[j].kind == release && hist[rv].uid != 0) ||
#endif
		(c[i].slot[j].kind != create && hist[rv].uid != 0 && c[i].slot[j].at == rv)) ->
		if
		:: c[i].slot[j].kind == renew || c[i].slot[j].kind == release ->
			assert(hist[rv].owner == i && hist[rv].term == c[i].slot[j].term) /* nobody else's term is written to */
		:: c[i].slot[j].kind == acquire ->
			for (k : 0 .. N - 1) { assert(k == i || !LIVE(k)) } /* nobody's work is taken over */
		:: else
		fi;
		hist[rv + 1].uid = hist[rv].uid;
		hist[rv + 1].owner = i;
		hist[rv + 1].term = hist[rv].term;
		hist[rv + 1].state = rv + 1;
		if
		:: c[i].slot[j].kind == create -> hist[rv + 1].uid = rv + 1; hist[rv + 1].term = rv + 1
		:: c[i].slot[j].kind == acquire -> hist[rv + 1].term = rv + 1
		:: c[i].slot[j].kind == release -> hist[rv + 1].owner = NONE; hist[rv + 1].term = 0
		:: else
		fi;
		rv++;
		c[i].slot[j].at = rv;
		c[i].slot[j].landed = true
	:: rv < WRITES && (
		(c[i].slot[j].kind == create && hist[rv].uid != 0) ||
#ifdef BLINDRELEASE
		(c[i].slot[j].kind != release) &&
#endif
		(c[i].slot[j].kind != create && (hist[rv].uid == 0 || c[i].slot[j].at != rv))) ->
		c[i].slot[j].refused = true
	:: else /* the bound is reached */
	fi
}

/* i hears the reply in slot j. */
inline hear() {
	if
	:: c[i].slot[j].landed && (c[i].slot[j].kind == create || c[i].slot[j].kind == acquire) ->
		v = c[i].slot[j].at;
		c[i].mode = waiting;
		if
		:: v > c[i].view -> see()
		:: else
		fi;
		if
#ifdef CREATECHECKS
		:: c[i].deleted_wait > 0 -> skip /* a holder that was not known when the request was sent */
#endif
		#ifndef FROMREPLY
		:: c[i].slot[j].age >= R -> c[i].mode = waiting /* too late to begin */
#endif
		:: else ->
			c[i].mode = leading;
			c[i].term = c[i].slot[j].at;
			c[i].trust = c[i].slot[j].age;
#ifdef FROMREPLY
			c[i].trust = 0;
#endif
			if
			:: hist[c[i].view].owner != i || hist[c[i].view].term != c[i].term -> c[i].mode = waiting
			:: else -> assert(c[i].term > token); token = c[i].term /* fencing tokens grow */
			fi
		fi
	:: c[i].slot[j].landed && c[i].slot[j].kind == renew ->
		v = c[i].slot[j].at;
		if
		:: v > c[i].view -> see()
		:: else
		fi;
		if
		:: c[i].mode == leading && c[i].slot[j].term == c[i].term ->
#ifdef FROMREPLY
			c[i].trust = 0
#else
			if
			:: c[i].slot[j].age < c[i].trust -> c[i].trust = c[i].slot[j].age
			:: else
			fi
#endif
		:: else
		fi
	:: else ->
		if :: c[i].mode == asking -> c[i].mode = waiting :: else fi
	fi;
	clear()
}

inline clear() {
	c[i].slot[j].used = false; c[i].slot[j].heeded = false; c[i].slot[j].landed = false;
	c[i].slot[j].refused = false; c[i].slot[j].at = 0; c[i].slot[j].term = 0; c[i].slot[j].age = 0;
	c[i].slot[j].kind = create
}

inline send(what) {
	c[i].slot[j].used = true;
	c[i].slot[j].heeded = true;
	c[i].slot[j].kind = what;
	c[i].slot[j].at = c[i].view;
	c[i].slot[j].age = 0
}

/* Whether a request of i is under way, and, for a person who deletes, whether all candidates have
 * seen the Lease, and none has a request to create it under way that it waits for. */
bool busy, may;
inline findBusy() {
	busy = false;
	for (k : 0 .. SLOTS - 1) { if :: c[i].slot[k].used && c[i].slot[k].heeded -> busy = true :: else fi }
}
inline permit() {
	may = true;
	for (k : 0 .. N - 1) {
#ifndef UNSEEN
		if :: SEEN(k).uid != hist[rv].uid -> may = false :: else fi;
#endif
#ifndef CREATEGAP
		for (v : 0 .. SLOTS - 1) {
			if
			:: c[k].slot[v].used && c[k].slot[v].heeded && c[k].slot[v].kind == create -> may = false
			:: else
			fi
		}
#endif
		skip
	}
}

/* What nobody will look at any more is forgotten, so that fewer states differ. */
inline tidy() {
	if
	:: c[i].mode != leading ->
		c[i].term = 0; c[i].trust = 0;
		for (k : 0 .. SLOTS - 1) {
			if
			:: c[i].slot[k].used && !c[i].slot[k].heeded ->
				c[i].slot[k].age = 0;
				if
				:: c[i].slot[k].landed -> j = k; clear()
				:: else
				fi
			:: else
			fi
		}
	:: else
	fi;
	for (i : 0 .. N - 1) {
		for (j : 0 .. SLOTS - 1) {
			if
			:: c[i].slot[j].used && !c[i].slot[j].heeded && !c[i].slot[j].landed && c[i].slot[j].at < rv &&
#ifdef BLINDRELEASE
			   c[i].slot[j].kind != release &&
#endif
			   c[i].slot[j].kind != create -> clear() /* it would be refused */
			:: else
			fi
		}
	}
	v = rv;
	for (k : 0 .. N - 1) { if :: c[k].view < v -> v = c[k].view :: else fi }
	for (k : 0 .. WRITES) {
		if
		:: k < v -> hist[k].owner = 0; hist[k].uid = 0; hist[k].term = 0; hist[k].state = 0
		:: else -> break
		fi
	}
}

#define PICK(x, n) x = 0; do :: x < n - 1 -> x++ :: break od

active proctype world() {
	atomic {
		hist[0].owner = NONE;
#if DELETES == 0
		hist[0].uid = 1; /* there is a Lease, and it is free */
#endif
		for (i : 0 .. N - 1) {
			c[i].mode = waiting;
			for (j : 0 .. SLOTS - 1) { c[i].slot[j].kind = create }
			if :: i == 0 -> c[i].rate = SLOW :: else -> c[i].rate = FAST fi
		}
	}
	do
	:: atomic { tick(); i = 0; j = 0; k = 0; v = 0 }
	:: atomic { /* a person deletes the Lease, or edits a label */
		rv < WRITES && hist[rv].uid != 0 && (deletes > 0 || edits > 0);
		if
		:: deletes > 0 ->
			permit();
			if
			:: may ->
				hist[rv + 1].owner = NONE; hist[rv + 1].uid = 0; hist[rv + 1].state = rv + 1;
				rv++; deletes--
			:: else
			fi
		:: edits > 0 ->
			hist[rv + 1].owner = hist[rv].owner; hist[rv + 1].uid = hist[rv].uid;
			hist[rv + 1].term = hist[rv].term; hist[rv + 1].state = hist[rv].state;
			rv++; edits--
		fi;
		may = false; i = 0; j = 0; k = 0; v = 0
	   }
	:: atomic { /* a candidate, or one of its requests, moves */
		PICK(i, N);
		PICK(j, SLOTS);
		if
		/* The watch or a read brings news: any version after the one seen last. */
		:: c[i].view < rv && j == 0 ->
			v = c[i].view + 1;
			do :: v < rv -> v++ :: break od;
			see()
		/* A request arrives, however late. */
		:: c[i].slot[j].used && !c[i].slot[j].landed && !c[i].slot[j].refused -> land()
		/* Its reply arrives. */
		:: c[i].slot[j].used && c[i].slot[j].heeded && (c[i].slot[j].landed || c[i].slot[j].refused) -> hear()
		/* The sender gives up: the outcome is unknown, and the request may still arrive. */
		:: c[i].slot[j].used && c[i].slot[j].heeded ->
			c[i].slot[j].heeded = false;
			if
			:: c[i].mode == asking -> c[i].mode = waiting
			:: else
			fi;
			if
			:: c[i].slot[j].refused -> clear()
			:: c[i].slot[j].landed && c[i].slot[j].kind != renew -> clear()
			:: else
			fi
		/* A request that nobody waits for is lost, or nothing can come of it any more. */
		:: c[i].slot[j].used && !c[i].slot[j].heeded -> clear()
		/* The lease is taken. */
		:: c[i].mode == waiting && !c[i].slot[j].used && c[i].deleted_wait == 0 &&
		   (SEEN(i).owner == NONE || SEEN(i).owner == i || c[i].since >= WAIT) ->
			findBusy();
			if
			:: !busy ->
				if
				:: SEEN(i).uid == 0 -> send(create)
				:: else -> send(acquire)
				fi;
				c[i].mode = asking
			:: else
			fi
		/* It is renewed. */
		:: LIVE(i) && !c[i].slot[j].used ->
			findBusy();
			if
			:: !busy -> send(renew); c[i].slot[j].term = c[i].term
			:: else
			fi
		/* Its body has returned, and it is released. */
		:: LIVE(i) && !c[i].slot[j].used ->
			findBusy();
			if
			:: !busy -> send(release); c[i].slot[j].term = c[i].term; c[i].mode = asking
			:: else
			fi
		/* The holder finds that its trust has ended. */
		:: c[i].mode == leading && c[i].trust >= R && j == 0 -> c[i].mode = waiting
		:: else
		fi;
		/* At most one session is live. */
		for (k : 0 .. N - 1) { for (v : k + 1 .. N - 1) { assert(!(LIVE(k) && LIVE(v))) } }
		tidy();
		busy = false; i = 0; j = 0; k = 0; v = 0
	   }
	od
}
