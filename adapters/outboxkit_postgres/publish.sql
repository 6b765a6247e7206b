-- Publishes a message in the caller's transaction: SELECT {prefix}publish('orders', 'order-7', 'order.placed', '{"total": 12}').
CREATE FUNCTION {schema}.{prefix}publish(topic text, key text, type text, data jsonb) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $publish$
DECLARE
    moment timestamptz := clock_timestamp();
    -- A UUIDv7: 48 bits of milliseconds before the random ones of a version 4, whose version bits become 7.
    id uuid := encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
        substring(int8send(floor(extract(epoch FROM moment) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid;
    name CONSTANT text := '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$';
    partitions integer;
    envelope bytea;
BEGIN
    IF topic IS NULL OR topic !~ name OR type IS NULL OR type !~ name THEN
        RAISE EXCEPTION '{prefix}publish: topic % and type % have to be 1 to 64 letters, digits, ".", "_" or "-", starting with a letter or digit',
            quote_nullable(topic), quote_nullable(type) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF data IS NULL OR key = '' OR octet_length(convert_to(key, 'UTF8')) > 1024 THEN
        RAISE EXCEPTION '{prefix}publish: data is needed, and a key of 1 to 1024 bytes in UTF-8 or NULL'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    envelope := convert_to(json_strip_nulls(json_build_object(
        'specversion', '1.0', 'id', id, 'source', (SELECT s.source FROM {schema}.{prefix}schema s), 'type', type,
        'time', to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'datacontenttype', 'application/json',
        'traceparent', '00-' || replace(gen_random_uuid()::text, '-', '') || '-' || right(replace(gen_random_uuid()::text, '-', ''), 16) || '-00',
        'subject', key))::text, 'UTF8');
    -- The data goes in as it is: stripping nulls is for the attributes only.
    envelope := substring(envelope FROM 1 FOR octet_length(envelope) - 1) || convert_to(',"data":' || data::text || '}', 'UTF8');
    IF octet_length(envelope) > 1048576 THEN
        RAISE EXCEPTION '{prefix}publish: the envelope of % would be % bytes and the limit is 1048576: publish a reference to the large part',
            quote_literal(type), octet_length(envelope) USING ERRCODE = 'program_limit_exceeded';
    END IF;
    SELECT t.partitions INTO partitions FROM {schema}.{prefix}topic t WHERE t.topic = {prefix}publish.topic;
    -- The first 32 bits of the key's MD5, as outboxkit.events.partition has it.
    INSERT INTO {schema}.{prefix}outbox (topic, partition, id, key, type, envelope) VALUES (
        topic, ('x' || substring(md5(convert_to(coalesce(key, id::text), 'UTF8')) FROM 1 FOR 8))::bit(32)::bigint % coalesce(partitions, 8),
        id, key, type, envelope);
    RETURN id;
END;
$publish$;
