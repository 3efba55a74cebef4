-- Registers the bots that the inventory describes (bots.json).
CREATE OR REPLACE FUNCTION migration.check_bots(given jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    problem text;
BEGIN
    IF jsonb_typeof(given) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'bots.json does not hold a list of bots: run playbooks/phase2_data_migration.yml, which writes it from the inventory' USING ERRCODE = 'MG002';
    END IF;
    SELECT string_agg(format('%s has bot_type %s', coalesce(b ->> 'bot_id', 'a bot without bot_id'), coalesce(b ->> 'bot_type', 'none')), '; ')
    INTO problem FROM jsonb_array_elements(given) AS b
    WHERE coalesce(b ->> 'bot_type', '') NOT IN ('shortseller', 'momentum', 'lxalgo');
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'unknown bot type: %; expected shortseller, momentum or lxalgo: correct the list `bots` of the inventory. Nothing was changed.', problem
            USING ERRCODE = 'MG002';
    END IF;
    SELECT string_agg(format('%s lacks %s', coalesce(b ->> 'bot_id', 'a bot'), field), '; ')
    INTO problem FROM jsonb_array_elements(given) AS b,
         unnest(ARRAY['bot_id', 'bot_name', 'initial_capital']) AS field
    WHERE coalesce(b ->> field, '') = '';
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'incomplete registration: %: complete the list `bots` of the inventory. Nothing was changed.', problem
            USING ERRCODE = 'MG002';
    END IF;
    SELECT string_agg(format('%s is registered as %s, the inventory says %s', r.bot_id, r.bot_type, b ->> 'bot_type'), '; ')
    INTO problem FROM jsonb_array_elements(given) AS b JOIN trading.bots r ON r.bot_id = b ->> 'bot_id'
    WHERE r.bot_type <> b ->> 'bot_type';
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'a bot cannot change its type: %: give the new bot an id of its own. Nothing was changed.', problem
            USING ERRCODE = 'MG002';
    END IF;
END
$$;

-- Registers the bots of one type, or brings descriptive columns, limits and
-- configuration up to date. Equity, status and heartbeat are the bot's own and
-- are set once. A changed setting becomes a new version. Returns
-- {"registered": n, "updated": n, "configurations": n}.
CREATE OR REPLACE FUNCTION migration.register_bots(given jsonb, wanted_type text, only_bot text) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    registered integer;
    updated integer;
    configurations integer;
BEGIN
    PERFORM migration.check_bots(given);
    IF only_bot <> '' AND NOT EXISTS (
        SELECT FROM jsonb_array_elements(given) AS b WHERE b ->> 'bot_id' = only_bot AND b ->> 'bot_type' = wanted_type) THEN
        RAISE EXCEPTION 'the inventory has no bot % of type %: correct the limit', only_bot, wanted_type USING ERRCODE = 'MG002';
    END IF;

    CREATE TEMPORARY TABLE given_bots ON COMMIT DROP AS
    SELECT b.* FROM jsonb_to_recordset(given) AS b (
        bot_id text, bot_name text, bot_type text, strategy_name text, description text, exchange text,
        deployment_mode text, initial_capital numeric, max_positions integer, leverage_limit numeric,
        max_daily_loss_pct numeric, max_weekly_loss_pct numeric, max_drawdown_pct numeric,
        timezone text, configuration jsonb)
    WHERE b.bot_type = wanted_type AND only_bot IN ('', b.bot_id);

    UPDATE trading.bots r SET
        bot_name = g.bot_name, strategy_name = g.strategy_name, description = g.description, exchange = g.exchange,
        deployment_mode = coalesce(g.deployment_mode, 'live'), initial_capital = g.initial_capital,
        max_positions = g.max_positions, leverage_limit = g.leverage_limit, max_daily_loss_pct = g.max_daily_loss_pct,
        max_weekly_loss_pct = g.max_weekly_loss_pct, max_drawdown_pct = g.max_drawdown_pct
    FROM given_bots g
    WHERE r.bot_id = g.bot_id
      AND (r.bot_name, r.strategy_name, r.description, r.exchange, r.deployment_mode, r.initial_capital,
           r.max_positions, r.leverage_limit, r.max_daily_loss_pct, r.max_weekly_loss_pct, r.max_drawdown_pct)
          IS DISTINCT FROM
          (g.bot_name, g.strategy_name, g.description, g.exchange, coalesce(g.deployment_mode, 'live'), g.initial_capital,
           g.max_positions, g.leverage_limit, g.max_daily_loss_pct, g.max_weekly_loss_pct, g.max_drawdown_pct);
    GET DIAGNOSTICS updated = ROW_COUNT;

    INSERT INTO trading.bots (
        bot_id, bot_name, bot_type, strategy_name, description, exchange, deployment_mode, initial_capital,
        current_equity, max_positions, leverage_limit, max_daily_loss_pct, max_weekly_loss_pct, max_drawdown_pct)
    SELECT bot_id, bot_name, bot_type, strategy_name, description, exchange, coalesce(deployment_mode, 'live'),
           initial_capital, initial_capital, max_positions, leverage_limit, max_daily_loss_pct, max_weekly_loss_pct,
           max_drawdown_pct
    FROM given_bots ORDER BY bot_id ON CONFLICT (bot_id) DO NOTHING;
    GET DIAGNOSTICS registered = ROW_COUNT;

    CREATE TEMPORARY TABLE given_settings ON COMMIT DROP AS
    SELECT bot_id, 'timezone' AS config_key, to_jsonb(coalesce(timezone, 'UTC')) AS config_value, 'platform' AS config_type FROM given_bots
    UNION ALL
    SELECT bot_id, 'risk_limits', jsonb_build_object(
        'max_positions', max_positions, 'leverage_limit', leverage_limit, 'max_daily_loss_pct', max_daily_loss_pct,
        'max_weekly_loss_pct', max_weekly_loss_pct, 'max_drawdown_pct', max_drawdown_pct), 'risk' FROM given_bots
    UNION ALL
    SELECT bot_id, setting.key, setting.value, 'strategy'
    FROM given_bots, jsonb_each(coalesce(configuration, '{}')) AS setting;
    DELETE FROM given_settings g USING config.bot_configurations c
    WHERE c.bot_id = g.bot_id AND c.config_key = g.config_key AND c.is_active AND c.config_value = g.config_value;

    UPDATE config.bot_configurations c SET is_active = false, effective_until = now(), updated_by = current_user
    FROM given_settings g WHERE c.bot_id = g.bot_id AND c.config_key = g.config_key AND c.is_active;
    INSERT INTO config.bot_configurations (bot_id, config_key, config_value, config_type, version)
    SELECT g.bot_id, g.config_key, g.config_value, g.config_type,
           1 + coalesce((SELECT max(version) FROM config.bot_configurations c
                         WHERE c.bot_id = g.bot_id AND c.config_key = g.config_key), 0)
    FROM given_settings g ORDER BY g.bot_id, g.config_key;
    GET DIAGNOSTICS configurations = ROW_COUNT;

    DROP TABLE given_bots, given_settings;
    RETURN jsonb_build_object('registered', registered, 'updated', updated, 'configurations', configurations);
END
$$;
